import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplane.config.knobs import DataKnobs
from microplane.data import store
from microplane.data.preparing import load_splits as dataset
from microplane.data.preparing import tokenise
from microplane.data.preparing.first_pass import files_of, split_off
from microplane.data.preparing.load_splits import DataSummary, load_splits
from microplane.data.preparing.summary import length_facts
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import DataError
from microplane.files import folder_aside
from tests.tiny import PAIRS, save_byte_tokenizer, text_rows, text_splits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def plain(make_tiny):
    return make_tiny(("<s>", "</s>"), eos="</s>", bos="<s>", adds_bos=True)


def pair(number: int) -> dict:
    return {"prompt": f"question {number}", "completion": f"answer {number}"}


def write(path: Path, rows) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def refused(tokenizer, **knobs) -> str:
    with pytest.raises(DataError) as caught:
        text_splits(DataKnobs(**knobs), tokenizer)
    return str(caught.value)


def prompts(tokenizer, rows) -> list[str]:
    return [tokenizer.decode(rows.prompt_and_target(row)[0]) for row in range(len(rows))]


# Rows


def test_rows_are_what_was_rendered_in_their_order(tmp_path, smol):
    file = write(tmp_path / "x.jsonl", ["", *map(pair, range(40))])
    splits = text_splits(DataKnobs(train=file), smol)
    assert (len(splits.train), len(splits.validation), splits.test) == (36, 4, None)
    lines = [int(splits.train.where(row).removeprefix("x.jsonl:")) for row in range(36)]
    assert lines == sorted(lines)
    for row, line in enumerate(lines):
        ids, trained = splits.train[row]
        assert (ids.dtype, trained.dtype) == (np.int32, np.bool_)
        assert (len(ids), trained.sum()) == (splits.train.lengths[row], splits.train.trained_counts[row])
        prompt, target = splits.train.prompt_and_target(row)
        assert prompt == ids[~trained].tolist()
        assert target == ids[trained][:-1].tolist()
        assert smol.decode(prompt).endswith(f"question {line - 2}\nassistant\n")
        assert smol.decode(target) == f"answer {line - 2}"
        assert smol.decode([ids[-1]], skip_special=False) == "<|im_end|>"  # and no line end behind it
    assert splits.train[-1][0].tolist() == splits.train[35][0].tolist()
    with pytest.raises(IndexError):
        splits.train[36]
    assert splits.train.lengths.dtype == splits.train.trained_counts.dtype == np.int32


def test_the_summary_tells_all_numbers(tmp_path, plain):
    file = write(tmp_path / "x.jsonl", [*map(pair, range(20)), pair(3)])
    test = write(tmp_path / "t.csv", ["question,answer", "question 3,answer 3", "question x,y"])
    splits = text_splits(DataKnobs(train=file, test=test, system="S"), plain)
    summary = splits.summary
    assert summary.format == "prompt/completion (prompt -> completion)"
    assert (summary.template, summary.system, summary.max_length) == ("plain", "S", 1024)
    assert summary.files == {"train": [file], "validation": [file], "test": [test]}
    assert summary.validation_from == "split off"
    assert sum(summary.rows[name] for name in ("train", "validation")) == 21
    for name in ("train", "validation", "test"):
        rows = getattr(splits, name)
        assert summary.rows[name] == len(rows)
        assert summary.tokens[name] == rows.lengths.sum()
        assert summary.trained_tokens[name] == rows.trained_counts.sum()
        assert summary.lengths[name]["max"] == rows.lengths.max()
    assert sum(summary.duplicates.values()) == 1
    assert (summary.bad, summary.dropped) == ({}, {"train": 0, "validation": 0, "test": 0})
    assert DataSummary(**json.loads(json.dumps(summary.to_dict()))) == summary
    assert len(summary.fingerprint) == 64
    lines = summary.lines()
    assert "format    prompt/completion (prompt -> completion)" in lines
    assert any(line.startswith("rows ") and line.endswith("(validation split off)") for line in lines)


def test_progress_is_told_for_both_passes(tmp_path, plain):
    said = []
    file = write(tmp_path / "x.jsonl", map(pair, range(450)))
    text_splits(DataKnobs(train=file), plain, lambda *said_now: said.append(said_now))
    assert said[:2] == [("checking x.jsonl", 200, None), ("checking x.jsonl", 400, None)]
    assert said[2:-1] == [("tokenising x.jsonl", done, 450) for done in (0, 200, 400, 450)]
    assert said[-1] == ("comparing rows", 0, None)


# Cache


def test_a_second_call_finds_the_first_ones_tokens(tmp_path, plain, monkeypatch):
    knobs = DataKnobs(train=write(tmp_path / "x.jsonl", map(pair, range(9))))
    first = text_splits(knobs, plain)
    monkeypatch.setattr(dataset, "tokenise_files", None)
    second = text_splits(knobs, plain)
    assert first.summary == second.summary
    assert all((a == b).all() for row in range(8) for a, b in zip(first.train[row], second.train[row], strict=True))
    assert first.train.where(7) == second.train.where(7)


def test_whatever_decides_the_tokens_is_part_of_the_key(tmp_path, plain, make_tiny, cache):
    file = tmp_path / "x.jsonl"
    knobs = DataKnobs(train=write(file, map(pair, range(9))))
    prints = [text_splits(knobs, plain).summary.fingerprint]
    for change in (
        {"system": "S"},
        {"max_length": 12},
        {"limit": 8},
        {"validation_share": 0.5},
        {"validation_rows": 2},
    ):
        prints.append(
            text_splits(knobs.model_copy(update={"validation_share": 0.4, **change}), plain).summary.fingerprint
        )
    prints.append(text_splits(knobs, replace(plain, eos_ids=(5,))).summary.fingerprint)
    prints.append(text_splits(knobs, make_tiny(("<s>", "</s>"), eos="</s>", merges=[("a", "n")])).summary.fingerprint)
    prints.append(
        text_splits(
            knobs, replace(plain, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
        ).summary.fingerprint
    )
    write(file, map(pair, range(1, 10)))
    os.utime(file, ns=(1, 1))
    prints.append(text_splits(knobs, plain).summary.fingerprint)
    assert len(set(prints)) == len(prints) == len(list(cache.iterdir()))


def test_equal_data_has_an_equal_fingerprint_elsewhere(tmp_path, plain):
    rows = list(map(pair, range(9)))
    one = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", rows)), plain)
    other = text_splits(DataKnobs(train=write(tmp_path / "y.jsonl", ["", *rows])), plain)
    assert one.summary.fingerprint == other.summary.fingerprint
    assert one.train.fingerprint == other.train.fingerprint != one.validation.fingerprint


@pytest.mark.parametrize("name", ["train.ids", "train.ends", "validation.targets", "summary.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "junk"])
def test_a_damaged_cache_is_made_anew(tmp_path, plain, cache, name, damage):
    knobs = DataKnobs(train=write(tmp_path / "x.jsonl", map(pair, range(9))))
    first = text_splits(knobs, plain).summary
    (folder,) = cache.iterdir()
    content = (folder / name).read_bytes()
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[:-3] if damage == "cut" else b"junk")
    assert text_splits(knobs, plain).summary == first
    assert (folder / name).read_bytes() == content


def test_a_cache_that_cannot_be_read_back_is_told(tmp_path, plain, monkeypatch):
    file = write(tmp_path / "x.jsonl", map(pair, range(9)))
    monkeypatch.setattr(dataset, "_open", lambda folder: None)
    assert "cannot be read back; is the disk damaged?" in refused(plain, train=file)


def test_a_cache_that_cannot_be_written_is_told(tmp_path, plain, monkeypatch):
    file = write(tmp_path / "x.jsonl", map(pair, range(9)))
    monkeypatch.setenv("MICROPLANE_CACHE", file)
    text = refused(plain, train=file)
    assert text.startswith(
        f"the tokenised data cannot be written to {file}/data: Not a directory; make room there, or "
    )
    assert text.endswith("name another folder with the environment variable MICROPLANE_CACHE")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, plain, monkeypatch, cache):
    file = write(tmp_path / "x.jsonl", map(pair, range(9)))
    monkeypatch.setattr(store, "_file", lambda folder, name, array: Path("/dev/full"))
    assert "No space left on device; make room there" in refused(plain, train=file)
    assert list(cache.iterdir()) == []


def test_of_two_who_write_the_same_the_first_wins(tmp_path):
    target = tmp_path / "a" / "b"
    with folder_aside(target, there="keep") as mine:
        (mine / "x").write_text("mine")
        with folder_aside(target, there="keep") as theirs:
            (theirs / "x").write_text("theirs")
    assert (target / "x").read_text() == "theirs"
    assert [item.name for item in (tmp_path / "a").iterdir()] == ["b"]


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, plain, monkeypatch, cache):
    file = tmp_path / "x.jsonl"
    write(file, map(pair, range(9)))

    def slow(*arguments):
        tokenise.tokenise_files(*arguments)
        write(file, map(pair, range(10)))

    monkeypatch.setattr(dataset, "tokenise_files", slow)
    assert refused(plain, train=str(file)) == f"{file} changed while it was read; run again"
    assert list(cache.iterdir()) == []


# Splits

HASHES = st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda rows: len(set(rows)) > 1)


@settings(max_examples=200, deadline=None)
@given(HASHES, st.floats(0.01, 0.89), st.integers(1, 30), st.randoms())
def test_equal_rows_stay_together_and_the_order_does_not_matter(rows, share, most, rng):
    hashes = np.array(rows, np.uint64) * np.uint64(2**58)
    held_out = split_off(hashes, share, most)
    assert set(hashes[held_out]).isdisjoint(hashes[~held_out])
    assert 0 < held_out.sum() < len(rows)
    target = min(round(share * len(rows)), most)
    smallest = rows.count(min(rows))
    assert held_out.sum() <= max(target, smallest)
    if len(set(rows)) == len(rows):
        assert held_out.sum() == min(max(1, target), len(rows) - 1)
    order = list(range(len(rows)))
    rng.shuffle(order)
    assert (split_off(hashes[order], share, most) == held_out[order]).all()


def test_splits_do_not_depend_on_order_and_barely_on_more_rows(tmp_path, plain):
    rows = list(map(pair, range(200)))
    one = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", rows)), plain)
    random.Random(0).shuffle(rows)
    other = text_splits(DataKnobs(train=write(tmp_path / "y.jsonl", [*rows, *map(pair, range(200, 220))])), plain)
    old, new = set(prompts(plain, one.validation)), set(prompts(plain, other.validation))
    assert (len(old), len(new)) == (20, 22)
    assert len(old & new) >= 18


def test_files_and_folders_name_their_splits(tmp_path, plain):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train-0000-of-0002.jsonl", [pair(1), pair(2)])
    write(folder / "train-0001-of-0002.jsonl", [pair(3)])
    write(folder / "dev.jsonl", [pair(4)])
    write(folder / "test.jsonl", [{"question": "q", "answer": "a"}])
    splits = text_splits(DataKnobs(train=str(folder)), plain)
    assert [splits.train.where(row) for row in range(3)] == [
        "train-0000-of-0002.jsonl:1",
        "train-0000-of-0002.jsonl:2",
        "train-0001-of-0002.jsonl:1",
    ]
    assert (splits.validation.where(0), splits.test.where(0)) == ("dev.jsonl:1", "test.jsonl:1")
    assert splits.summary.validation_from == "file"
    other = write(tmp_path / "other.jsonl", [pair(5), pair(6)])
    splits = text_splits(DataKnobs(train=str(folder), validation=other, test=str(folder)), plain)
    assert (len(splits.validation), len(splits.test)) == (2, 1)


def test_all_rows_of_a_file_can_be_loaded_to_measure_on(tmp_path, plain):
    folder = tmp_path / "data"
    folder.mkdir()
    file = DataKnobs(train=write(folder / "train.jsonl", map(pair, range(9))))
    assert len(text_splits(file, plain).train) == 8
    assert len(text_rows(file, plain)) == 9
    write(folder / "dev.jsonl", [pair(1)])
    assert len(text_rows(DataKnobs(train=str(folder)), plain)) == 1
    write(folder / "test.jsonl", [pair(1), pair(2)])
    assert len(text_rows(DataKnobs(train=str(folder)), plain)) == 2


def test_one_row_is_enough_to_train_on_where_validation_is_given(tmp_path, plain):
    one, other = write(tmp_path / "a.jsonl", [pair(1)]), write(tmp_path / "b.jsonl", [pair(2)])
    assert len(text_splits(DataKnobs(train=one, validation=other), plain).train) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([pair(1)], "the training data has 1 row; at least 2 different ones are needed to train and to validate"),
        ([pair(1)] * 3, "the training data has 3 rows that are all equal; at least 2 different ones"),
        ([""], "holds no rows"),
        (["{", "["], "x.jsonl: 2 of 2 rows cannot be used:"),
        ([{"prompt": "a", "completion": ""}] * 2, "2 of 2 rows cannot be used:"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_too_few_rows(tmp_path, plain, rows, message, skip, cache):
    assert message in refused(plain, train=write(tmp_path / "x.jsonl", rows), skip_bad_rows=skip)
    assert not cache.exists()


def test_no_data_at_all():
    with pytest.raises(
        DataError, match="no data given; expected a file or a folder, as in: microplane train MODEL DATA"
    ):
        files_of(DataKnobs())


def test_only_the_first_rows_of_the_training_file_are_read(tmp_path, plain):
    file = write(tmp_path / "x.jsonl", [*map(pair, range(10)), "broken"])
    splits = text_splits(DataKnobs(train=file, test=write(tmp_path / "t.jsonl", map(pair, range(12))), limit=10), plain)
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (10, 12)


def test_rows_on_both_sides_are_found(tmp_path, plain):
    train = write(tmp_path / "train.jsonl", map(pair, range(10)))
    validation = write(tmp_path / "dev.jsonl", [pair(20)])
    test = write(
        tmp_path / "test.csv",
        ["input,output", "question 30,a", *(f"question {n},answer {n}" for n in (5, 1, 0, 2, 3, 4, 6))],
    )
    summary = text_splits(DataKnobs(train=train, validation=validation, test=test), plain).summary
    assert summary.overlap == {"validation": 0, "test": 7}
    assert summary.overlap_examples[:2] == ["train.jsonl:6 = test.csv:3", "train.jsonl:2 = test.csv:4"]
    assert len(summary.overlap_examples) == 5
    assert summary.warnings == [
        "7 of 8 test rows stand in the training rows too (train.jsonl:6 = test.csv:3): numbers measured on test will "
        "look too good"
    ]


# Bad rows

BAD = [pair(0), '{"prompt": "a", "completion": 3}', pair(1), "{", pair(2), '{"prompt": "a"}', pair(3)]


def test_bad_rows_are_refused_all_at_once(tmp_path, plain, cache):
    text = refused(plain, train=write(tmp_path / "x.jsonl", BAD))
    assert text.splitlines() == [
        "x.jsonl: 3 of 7 rows cannot be used:",
        "  x.jsonl:2: key 'completion' is the number 3, expected text",
        "  x.jsonl:4: Expecting property name enclosed in double quotes at column 2, near '{'; expected one whole JSON "
        "object on the line",
        "  x.jsonl:6: key 'completion' is missing, expected text; the row has ['prompt']",
        "In all: 1 x not text, 1 x broken JSON, 1 x missing key.",
        "Correct them, or leave them out with --skip-bad-rows.",
    ]
    assert not cache.exists()


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path, plain):
    file = write(tmp_path / "x.jsonl", BAD)
    splits = text_splits(DataKnobs(train=file, skip_bad_rows=True), plain)
    assert len(splits.train) + len(splits.validation) == 4
    assert splits.summary.bad == {"not text": 1, "broken JSON": 1, "missing key": 1}
    assert splits.summary.bad_examples[0] == "x.jsonl:2: key 'completion' is the number 3, expected text"
    assert "left out  1 x not text, 1 x broken JSON, 1 x missing key" in splits.summary.lines()
    assert refused(plain, train=file).startswith("x.jsonl: 3 of 7 rows")  # though their tokens are cached now


def test_rows_that_the_template_refuses_are_bad_rows(tmp_path, make_tiny, cache):
    template = "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{{ m.content }}{% endfor %}"
    tokenizer = make_tiny(template=template)
    file = write(tmp_path / "x.jsonl", [{"system": "", **pair(n)} for n in range(9)] + [{"system": "S", **pair(10)}])
    text = refused(tokenizer, train=file)
    assert "x.jsonl: 1 of 10 rows cannot be used:\n  x.jsonl:10: the model's chat template refuses" in text
    assert list(cache.iterdir()) == []
    assert text_splits(DataKnobs(train=file, skip_bad_rows=True), tokenizer).summary.bad == {
        "refused by the template": 1
    }
    every = write(tmp_path / "y.jsonl", [{"system": "S", **pair(n)} for n in range(99)])
    assert len((text := refused(tokenizer, train=every)).splitlines()) == 23  # it stops early, and says so
    assert text.startswith("y.jsonl: at least 20 of 99 rows cannot be used:")
    assert "rows cannot be used" in refused(tokenizer, train=every, skip_bad_rows=True)


# Lengths, and what is not trained


def test_cut_rows_are_counted_and_warned_of(tmp_path, plain):
    rows = [{"prompt": "p" * 20, "completion": "a"}, {"prompt": "q", "completion": "b" * 20}, *map(pair, range(4))]
    test = write(tmp_path / "t.jsonl", rows)
    summary = text_splits(
        DataKnobs(train=write(tmp_path / "x.jsonl", map(pair, range(9))), test=test, max_length=16), plain
    ).summary
    assert (summary.truncated["test"], summary.answers_cut["test"]) == (5, 1)
    assert summary.lengths["test"]["max"] == 16
    assert summary.warnings[:2] == [
        "14 rows above 16 tokens (data.max_length) lost the start of their prompt",
        "1 answer above 16 tokens (data.max_length) lost their end, and all that stood before them",
    ]


def test_cut_pairs_are_warned_of_by_the_knobs_that_cut_them(tmp_path):
    (tmp_path / "model").mkdir()
    save_byte_tokenizer(tmp_path / "model", ends=True)
    rows = [{"inputs": f"{n}" + "q" * 30, "targets": "b"} for n in range(9)]
    rows += [{"inputs": f"{n}", "targets": "b" * 20} for n in range(7)]
    knobs = DataKnobs(train=write(tmp_path / "x.jsonl", rows), max_length=16, max_target_length=8)
    splits = load_splits(knobs, load_tokenizer(tmp_path / "model"), PAIRS)
    assert splits.summary.warnings[:2] == [
        "9 rows above 16 tokens (data.max_length) lost the end of their prompt",
        "7 answers above 8 tokens (data.max_target_length) lost their end",
    ]


def test_a_cut_answer_keeps_all_of_its_target(tmp_path, plain):
    rows = [{"prompt": "q", "completion": f"{n}" + "b" * 20} for n in range(3)]
    train = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", rows), max_length=16), plain).train
    prompt, target = train.prompt_and_target(0)
    assert (plain.decode(prompt, False), len(target)) == ("<s>", 15)


def turns(number: int, weight: int) -> dict:
    answer = {"role": "assistant", "content": "a", "weight": weight}
    return {"messages": [{"role": "user", "content": f"question {number}"}, answer]}


def test_rows_with_nothing_to_train_on_are_dropped(tmp_path, plain):
    rows = [turns(number, int(number < 195)) for number in range(200)]
    summary = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", rows)), plain).summary
    assert sum(summary.dropped.values()) == 5
    assert sum(summary.rows.values()) == 195
    dropped = summary.dropped["train"]
    share = (
        f"{dropped} of {summary.rows['train'] + dropped} train rows ({dropped / (summary.rows['train'] + dropped):.1%})"
    )
    assert summary.warnings[0] == f"{share} have nothing to train on and were dropped"


def test_rows_that_hold_special_tokens_as_text_are_counted(tmp_path, plain):
    rows = [{"prompt": f"what is {'</s>' if n % 3 == 0 else 'it'} {n}?", "completion": "a"} for n in range(12)]
    warnings = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", rows)), plain).summary.warnings
    assert sum(text.startswith("4 rows hold special tokens of the model as text") for text in warnings) == 1


def test_data_with_nothing_to_train_on_is_refused(tmp_path, plain, cache):
    rows = [turns(number, 0) for number in range(30)]
    text = refused(plain, train=write(tmp_path / "x.jsonl", rows))
    assert (
        "x.jsonl: none of the 27 train rows has a token to train on; expected answers that are trained (a weight of 0"
        in text
    )
    assert list(cache.iterdir()) == []


def test_unknown_tokens_are_counted_and_warned_of(tmp_path, make_spaced):
    rows = [{"prompt": "abc", "completion": f"é{letter}"} for letter in "abcdefghij"]
    summary = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", rows), max_unknown=0.4), make_spaced()).summary
    # <unk> is one of the trained tokens: <unk>, the letter, <eos>
    assert summary.trained_unk_rate == pytest.approx(1 / 3)
    assert 0 < summary.unk_rate < summary.trained_unk_rate
    assert f"{summary.unk_rate:.1%} of the tokens and 33.3% of the trained tokens are unknown" in summary.warnings[0]


def test_shares_of_unknown_tokens_are_of_the_training_rows(tmp_path, make_spaced):
    rows = [{"prompt": "ab" * (n % 3) + "ñ", "completion": f"é{'cd' * (n % 4)}"} for n in range(40)]
    tokenizer = make_spaced()
    splits = text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", rows), max_unknown=1), tokenizer)
    ids, targets = (
        np.concatenate(side) for side in zip(*(splits.train[n] for n in range(len(splits.train))), strict=True)
    )
    unknown = ids == tokenizer.unk_id
    summary = splits.summary
    assert summary.unk_rate == pytest.approx(unknown.mean())
    assert summary.trained_unk_rate == pytest.approx(unknown[targets].mean())
    assert summary.input_unk_rate == pytest.approx(unknown[~targets].mean())
    assert len({summary.unk_rate, summary.trained_unk_rate, summary.input_unk_rate}) == 3


def test_what_is_all_known_passes_where_nothing_unknown_may_be(tmp_path, make_spaced):
    rows = [{"prompt": "abc", "completion": letter} for letter in "abcdefghij"]
    text_splits(DataKnobs(train=write(tmp_path / "x.jsonl", rows), max_unknown=0), make_spaced())


def test_facts_on_lengths():
    found = length_facts(np.array([1, 2, 3, 4, 100]))
    assert found == {"min": 1, "median": 3, "mean": 22, "p95": pytest.approx(80.8), "max": 100}


def test_text_that_the_vocabulary_does_not_know_is_refused(tmp_path, make_spaced):
    rows = [{"prompt": "abc", "completion": f"é{letter}"} for letter in "abcdefghij"]
    text = refused(make_spaced(), train=write(tmp_path / "x.jsonl", rows))
    assert "33.3% of the answer tokens are unknown" in text
    assert "data.max_unknown = 0.05" in text


def test_a_generation_prompt_that_differs_is_warned_of(tmp_path, make_tiny):
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<eos>{% endfor %}{{ 'go' if add_generation_prompt }}"
    file = write(tmp_path / "x.jsonl", map(pair, range(9)))
    (warning,) = text_splits(DataKnobs(train=file), make_tiny(template=template)).summary.warnings
    assert warning.startswith("in 9 rows the chat template begins the answer in another way than for generation")
    assert not text_splits(DataKnobs(train=file, template="plain"), make_tiny(template=template)).summary.warnings


def test_plain_text_is_trained_whole_without_a_template(tmp_path, smol):
    file = write(tmp_path / "x.jsonl", [{"text": f"Text number {n}."} for n in range(9)])
    splits = text_splits(DataKnobs(train=file), smol)
    assert splits.summary.template == "none"
    assert (splits.train.lengths - splits.train.trained_counts == 1).all()
