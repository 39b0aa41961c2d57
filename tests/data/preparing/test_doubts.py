"""Doubts about what rows mean: each kind is found, and rows that nothing is wrong with raise none."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing import doubts as doubts_module
from microplane.data.preparing.doubts import doubtful_names
from microplane.data.preparing.load_splits import load_splits
from microplane.data.tokenizers.load import load_tokenizer
from microplane.objectives.select import NEXT_TOKEN, LabelCandidates
from tests.labels import save_wordpiece
from tests.tiny import save_tiny_folder

NOUNS = "lamp door fan heater blind radio kettle oven gate pump bell clock desk tap shelf vent".split()
PLACES = "kitchen hall attic garden cellar porch garage office nursery studio".split()


def asked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions of many words, each with an answer of its own."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = draw.sample(NOUNS, 5) + draw.sample(PLACES, 3)
        rows.append({"prompt": f"{' '.join(words)} {number}", "completion": f"{words[0]} in the {words[-1]}"})
    return rows


def reviews(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    said = {"good": "fine warm bright".split(), "bad": "poor cold dull".split()}
    rows = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        words = draw.sample(NOUNS, 4) + draw.sample(said[label], 2) + draw.sample(PLACES, 3)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def warned(tmp_path: Path, train, validation=None, labels: bool = False) -> list[str]:
    files = {"train": train} | ({"validation": validation} if validation else {})
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    knobs = DataKnobs(train=str(tmp_path / "train.jsonl"), max_length=200)
    if validation:
        knobs = knobs.model_copy(update={"validation": str(tmp_path / "validation.jsonl")})
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    if labels:
        save_wordpiece(folder)
    else:
        save_tiny_folder(folder)
    possible = LabelCandidates(None) if labels else NEXT_TOKEN
    return load_splits(knobs, load_tokenizer(folder), possible).summary.warnings


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_nothing_is_wrong_with_raise_no_doubt(tmp_path, labels, seed):
    make = reviews if labels else asked
    assert warned(tmp_path, make(120, seed), make(40, seed + 100), labels) == []


def test_the_same_question_with_other_answers(tmp_path):
    rows = asked(100)
    rows[20:23] = [rows[10] | {"completion": f"other {n}"} for n in range(3)]
    (line,) = warned(tmp_path, rows, asked(30, 100))
    assert line.startswith("4 of 100 training rows ask the same")
    assert "train.jsonl:11 ('" in line
    assert "train.jsonl:21 ('other 0')" in line


def test_a_row_with_two_labels(tmp_path):
    rows = reviews(100)
    rows[30:32] = [{"text": rows[n]["text"], "label": {"good": "bad", "bad": "good"}[rows[n]["label"]]} for n in (2, 5)]
    (line,) = warned(tmp_path, rows, reviews(30, 100), labels=True)
    assert line.startswith("4 of 100 training rows ask the same")


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: text.upper(),
        lambda text: f"{text} now",
        lambda text: text.replace(" ", ", ") + "!",
        lambda text: "so " + text,
    ],
    ids=["capitals", "a word more", "punctuation", "a word before"],
)
@pytest.mark.parametrize("labels", [False, True])
def test_held_out_rows_that_hardly_differ_from_training_rows(tmp_path, labels, changed):
    train = (reviews if labels else asked)(100)
    key = "text" if labels else "prompt"
    near = [row | {key: changed(row[key])} for row in train[:5]]
    rest = (reviews if labels else asked)(35, 100)
    found = [line for line in warned(tmp_path, train, near + rest, labels) if "hardly differ" in line]
    if labels and changed("a") in ("A", "a!"):  # to this vocabulary the rows are equal, or other ones
        assert found == []
        return
    assert found[0].startswith("5 of 40 validation rows hardly differ from a training row with the same answer")
    assert "train.jsonl:1 and validation.jsonl:1" in found[0]


def test_rows_that_are_alike_and_answered_otherwise_are_no_duplicates(tmp_path):
    train = asked(100)
    near = [row | {"prompt": f"{row['prompt']} now", "completion": "no"} for row in train[:9]]
    assert warned(tmp_path, train, near + asked(35, 100)) == []


@pytest.mark.parametrize("written", ["nan", "None", "NULL", "<NA>"])
def test_answers_that_programs_wrote_for_nothing(tmp_path, written):
    rows = asked(100)
    for number in (7, 30):
        rows[number]["completion"] = written
    (line,) = warned(tmp_path, rows, asked(30, 100))
    assert line.startswith("2 of 100 training rows are answered as programs write that there is nothing")
    assert f"the first in train.jsonl:8 ('{written}')" in line


def test_an_answer_that_holds_such_a_word_among_others_is_one(tmp_path):
    rows = asked(100)
    for number, answer in enumerate(["None of them", "no NaN at all", "null and void"]):
        rows[number]["completion"] = answer
    assert warned(tmp_path, rows, asked(30, 400)) == []


def test_such_a_word_once_in_many_rows_is_no_doubt(tmp_path):
    rows = asked(300)
    rows[8]["completion"] = "null"
    assert warned(tmp_path, rows, asked(30, 400)) == []


def test_one_answer_to_everything(tmp_path):
    rows = [row | {"completion": "yes"} for row in asked(100)]
    (line,) = [line for line in warned(tmp_path, rows) if "same answer, 'yes'" in line]
    assert line.startswith("90 of 90 training rows")


@pytest.mark.parametrize("twin", ["Good", "good ", "GOOD!", "-good"])
def test_classes_that_differ_in_spelling_alone(tmp_path, twin):
    rows = reviews(100)
    for row in rows[:20:2]:
        row["label"] = twin
    lines = warned(tmp_path, rows, labels=True)
    kept = twin.strip()
    if kept == "good":  # white space around a label is none of it
        assert not any("spelling" in line for line in lines)
    else:
        assert any("differ in spelling alone, and are learnt as 2 classes" in line and kept in line for line in lines)


def test_a_label_that_was_left_in_the_text(tmp_path):
    rows = [row | {"text": f"{row['text']} rated {row['label']}"} for row in reviews(100)]
    (line,) = [line for line in warned(tmp_path, rows, labels=True) if "own name" in line]
    assert "2 of 2 classes" in line


def test_a_label_that_all_texts_hold_is_no_leak(tmp_path):
    rows = [row | {"text": f"{row['text']} good or bad"} for row in reviews(100)]
    assert not any("own name" in line for line in warned(tmp_path, rows, labels=True))


@pytest.mark.parametrize("template", [True, False])
def test_conversations_without_a_chat_template(tmp_path, template):
    folder = save_tiny_folder(tmp_path / "model")
    if not template:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    turns = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in asked(50)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in turns]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_splits(DataKnobs(train=str(tmp_path / "rows.jsonl")), load_tokenizer(folder), NEXT_TOKEN)
    assert bool(found.summary.warnings) is not template
    assert all("no chat template" in line for line in found.summary.warnings)


def test_plain_text_asks_nothing(tmp_path):
    rows = [{"text": f"{row['prompt']} {row['completion']}"} for row in asked(80)]
    assert warned(tmp_path, rows, [{"text": row["prompt"]} for row in asked(30, 100)]) == []


@pytest.mark.parametrize(
    ("labels", "doubted"),
    [
        (("1", "1.0", "0"), "'1', '1.0' differ in spelling alone"),
        (("01", "1", "0"), "'01', '1' differ in spelling alone"),
        (("１", "1", "0"), "differ in spelling alone"),
        (("-1", "0", "1"), ""),  # a sign is no spelling
        (("+1", "-1"), ""),
        (("v1.0", "v1"), ""),
        (("good", "None"), "'None' is a class like the others"),
        (("good", "nan", "N/A"), "'N/A', 'nan' is a class like the others"),
        (("good", "none"), ""),  # a class of its own, where people name them
        (("red", "blue", "red,blue"), "'red,blue' is named as several others together"),
        (("a", "a|b", "b|c", "c"), "'a|b' is named as several others together"),  # b is nowhere alone
        (("Food, drinks", "Music, films", "Sports"), ""),
        (("red", "blue", "blue | red"), "write a list: ['blue', 'red']"),
        (("red", "Paris, Texas"), ""),
        (("C", "C#", "C++", "F#"), ""),  # signs that belong to the names
        (("A", "A+", "A-", "B"), ""),
        (("+", "-", "--"), ""),
        (("e-mail", "E_mail", "other"), "'E_mail', 'e-mail' differ in spelling alone"),
        (("C++", "c++"), "'C++', 'c++' differ in spelling alone"),
    ],
)
def test_class_names_that_may_mean_something_else(labels, doubted):
    lines = list(doubtful_names(sorted(labels)))
    assert any(doubted in line for line in lines) if doubted else lines == []


@pytest.mark.parametrize(("copied", "told"), [(39, False), (40, True), (60, True)])
def test_copies_are_told_from_half_of_the_rows_on(tmp_path, copied, told):
    rows = asked(80 - copied)
    copies = (rows * 80)[:copied]
    said = [line for line in warned(tmp_path, rows + copies, asked(10, seed=1)) if "copies of others" in line]
    assert said == (
        [
            f"{copied} of 80 training rows are copies of others: an epoch over them is one of {80 - copied} rows, made "
            f"{80 / (80 - copied):.1f} times"
        ]
        if told
        else []
    )


def test_rows_are_looked_at_up_to_a_number_of_tokens(tmp_path, monkeypatch):
    torn = [row | {"completion": f"{number % 2} of them"} for number, row in enumerate(asked(30) * 2)]
    rows = [*asked(60, seed=2), *torn[:30], *({**row, "completion": "another"} for row in torn[:30])]
    assert any("ask the same" in line for line in warned(tmp_path, rows, asked(10, seed=1)))
    monkeypatch.setattr(doubts_module, "MOST_TOKENS", 1000)
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "other"))
    assert not any("ask the same" in line for line in warned(tmp_path, rows, asked(10, seed=1)))


@pytest.mark.parametrize("seed", range(40))
def test_near_duplicates_are_those_of_comparing_each_row_with_each(seed):
    drawn = random.Random(seed)
    words = [f"w{number}" for number in range(drawn.choice([5, 30, 300]))]
    texts = [" ".join(drawn.choices(words, k=drawn.randint(0, 20))) for _ in range(40)]
    known = [doubts_module._Row(f"k{n}", text, drawn.choice("ab")) for n, text in enumerate(texts)]
    unseen = [doubts_module._Row(f"u{n}", changed_in_a_word(drawn.choice(texts), words, drawn), "a") for n in range(20)]

    def pairs(row):
        said = (row.prompt or row.answer).split()
        return set(pairwise(said))

    def near(one, other):
        alike = len(pairs(one) & pairs(other)) >= doubts_module.ALIKE * len(pairs(one) | pairs(other))
        return alike and one.answer == other.answer and one.prompt != other.prompt

    twins = [
        [other for other in known if near(row, other)] for row in unseen if len(pairs(row)) >= doubts_module.LEAST_PAIRS
    ]
    count = sum(map(bool, twins))
    found = list(doubts_module._near_duplicates(known, "test", unseen))
    assert [line.split()[0] for line in found] == ([str(count)] if count else [])
    assert not found or f" {next(filter(None, twins))[0].where} and" in found[0]


def changed_in_a_word(text, words, drawn):
    said = text.split()
    if said:
        said[drawn.randrange(len(said))] = drawn.choice(words)
    return " ".join(said)
