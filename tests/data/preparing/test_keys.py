"""The key of tokenised rows is of everything that decides them, and the fingerprint of everything that is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import load_splits
from microplane.objectives.select import NEXT_TOKEN, LabelCandidates
from tests.tiny import CHATML
from tests.tiny_tokenizers import tiny

SPECIAL = ("<eos>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tokens(file, tokenizer=None, **knobs):
    made = load_splits(DataKnobs(train=file, **knobs), tokenizer or tiny(SPECIAL, CHATML), NEXT_TOKEN)
    return [made.train[row][0].tolist() for row in range(len(made.train))]


@pytest.fixture
def answers(tmp_path):
    return written(tmp_path / "rows.jsonl", [{"prompt": f"ab {n} bc", "completion": f"{n}"} for n in range(40)])


def test_another_system_prompt_makes_other_rows(answers):
    brief, long = tokens(answers, system="be brief"), tokens(answers, system="be long")
    assert brief != long
    assert brief == tokens(answers, system="be brief")


@pytest.mark.parametrize("elsewhere", ["nothing", "another file", "the same rows"])
def test_a_file_is_found_from_any_folder_whatever_was_read_before(tmp_path, monkeypatch, elsewhere):
    """What is kept of a file tells where its text is, to which a path from another folder does not lead."""
    rows = [{"prompt": f"ab {n} bc", "completion": f"{n}"} for n in range(40)]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    file = written(here / "rows.jsonl", rows)
    if elsewhere != "nothing":
        written(there / "rows.jsonl", rows if elsewhere == "the same rows" else [rows[0] | {"prompt": "cd"}] * 40)
    monkeypatch.chdir(here)
    load_splits(DataKnobs(train="rows.jsonl"), tiny(SPECIAL, CHATML), NEXT_TOKEN)
    monkeypatch.chdir(there)
    made = load_splits(DataKnobs(train=file), tiny(SPECIAL, CHATML), NEXT_TOKEN)
    assert [Path(name).resolve() for name in made.summary.files["train"]] == [Path(file)]


def test_another_tokenizer_makes_other_rows(answers):
    """Of as many tokens, with the same template and the same end."""
    first, second = tiny(SPECIAL, CHATML, merges=(("a", "b"),)), tiny(SPECIAL, CHATML, merges=(("b", "c"),))
    assert (first.eos_ids, first.chat_template, first.vocab_size) == (
        second.eos_ids,
        second.chat_template,
        second.vocab_size,
    )
    rows, others = tokens(answers, first), tokens(answers, second)
    assert first.decode(rows[0]) == second.decode(others[0])
    assert rows != others


@pytest.mark.parametrize(
    "knobs", [{"template": "plain"}, {"max_length": 18}, {"validation_share": 0.5}, {"limit": 20}], ids=str
)
def test_other_knobs_make_other_rows(answers, knobs):
    assert tokens(answers) != tokens(answers, **knobs)


def test_the_fingerprint_is_of_the_labels_too(tmp_path):
    def fingerprint(name, labels):
        rows = [{"text": f"text {n}", "label": labels[n % 2]} for n in range(40)]
        file = written(tmp_path / name, rows)
        splits = load_splits(
            DataKnobs(train=file, validation=file), tiny(), LabelCandidates("classification", ("x", "y"))
        )
        return splits.train.fingerprint

    assert fingerprint("a.jsonl", "xy") == fingerprint("b.jsonl", "xy")
    assert fingerprint("a.jsonl", "xy") != fingerprint("c.jsonl", "yx")


def test_a_head_that_numbers_its_classes_otherwise_makes_other_rows(tmp_path):
    file = written(tmp_path / "rows.jsonl", [{"text": f"text {n}", "label": "xy"[n % 2]} for n in range(40)])

    def labels(*classes):
        rows = load_splits(DataKnobs(train=file), tiny(), LabelCandidates("classification", classes)).train
        return [float(rows.labels(row)[0]) for row in range(len(rows))]

    assert labels("x", "y") == [1 - label for label in labels("y", "x")]


def test_another_template_makes_other_rows(answers):
    assert tokens(answers) != tokens(answers, tiny(SPECIAL, CHATML.replace("<|im_end|>", "<|im_start|>")))


def test_files_of_a_folder_that_nobody_reads_are_told(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()

    def notices(**knobs):
        return load_splits(DataKnobs(train=str(folder), **knobs), tiny(SPECIAL, CHATML), NEXT_TOKEN).summary.notices

    rows = [{"prompt": f"ab {n}", "completion": f"{n}"} for n in range(40)]
    for name in ("train.jsonl", "test.jsonl", ".train.jsonl.swp", "notes.md", "dataset_info.json"):
        written(folder / name, rows)
    assert notices() == []
    extra = written(folder / "train2.jsonl", rows)
    told = "are not read: they are not called train, validation or test, with the ending of a data file"
    assert notices() == [f"rows: ['train2.jsonl'] {told.replace('are not read: they are', 'is not read: it is')}"]
    for name in ("eval.csv", "dev.txt"):
        (folder / name).write_text("prompt,completion\na,b\n")
    assert notices() == [f"rows: ['dev.txt', 'eval.csv', 'train2.jsonl'] {told}"]
    assert notices(validation=extra) == [f"rows: ['dev.txt', 'eval.csv'] {told}"]
