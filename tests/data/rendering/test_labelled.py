"""Rows with labels: two texts, their segments, and what is cut when they are too long."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import load_splits
from microplane.data.reading.bad_rows import RowError
from microplane.data.reading.example import Example
from microplane.data.reading.label_values import same_class
from microplane.data.rendering.labelled import LabelFormat, WordClassRenderer
from microplane.data.tokenizers.load import load_tokenizer
from microplane.data.tokenizers.tokenizer import shares
from microplane.errors import DataError
from microplane.inference.predict import as_pair
from microplane.models.configs.head import IGNORED
from microplane.objectives.classification import Classification
from microplane.objectives.select import LabelCandidates
from tests import labels as rows
from tests.labels import save_wordpiece, write


@pytest.fixture
def tokenizer(tmp_path):
    save_wordpiece(tmp_path)
    return load_tokenizer(tmp_path)


def pieces(tokenizer, encoded):
    return [tokenizer.piece(token) for token in encoded.ids]


def test_of_two_texts_the_longer_one_loses_tokens(tokenizer):
    whole = tokenizer.encode_pair("the red film is good", "it was")
    assert not whole.cut
    assert whole.types == [0] * 7 + [1] * 3
    cut = tokenizer.encode_pair("the red film is good", "it was", max_length=8)
    assert pieces(tokenizer, cut) == ["[CLS]", "the", "red", "film", "[SEP]", "it", "was", "[SEP]"]
    assert cut.types == [0, 0, 0, 0, 0, 1, 1, 1]
    assert cut.cut


def test_one_text_loses_its_end_and_keeps_its_special_tokens(tokenizer):
    cut = tokenizer.encode_pair("the red film is good", max_length=4)
    assert pieces(tokenizer, cut) == ["[CLS]", "the", "red", "[SEP]"]
    assert cut.offsets == [(0, 0), (0, 3), (4, 7), (0, 0)]
    assert not tokenizer.encode_pair("the red", max_length=4).cut


def test_shares_fill_the_room_and_take_from_the_longer():
    for first, second, room in product(range(7), range(7), range(9)):
        a, b = shares([first, second], room)
        assert a <= first
        assert b <= second
        assert a + b == min(first + second, room)
        if a < first and b < second:
            assert abs(a - b) <= 1
        assert a == first or a + 1 >= b  # what lost something is not the shorter one
        assert b == second or b + 1 >= a


def test_a_batch_knows_the_second_text(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    data = write(tmp_path / "data.jsonl", rows.pairs(40))
    splits = load_splits(DataKnobs(train=str(data)), tokenizer, LabelCandidates(None))
    batch = Classification().collate(splits.train, [0, 3])
    wanted = np.concatenate([splits.train.segments(row) for row in (0, 3)])
    assert batch.rows.types.tolist() == wanted.astype(int).tolist()
    assert 0 < wanted.sum() < len(wanted)
    assert batch.count == 2
    assert splits.summary.trained_tokens["train"] == len(splits.train)


def test_rows_of_one_text_have_no_segments(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    data = write(tmp_path / "data.jsonl", rows.reviews(40))
    splits = load_splits(DataKnobs(train=str(data)), tokenizer, LabelCandidates(None))
    assert Classification().collate(splits.train, [0, 3]).rows.types is None


def test_words_and_tags_written_as_text_are_lists_too():
    row = {"tokens": ["not", "bad"], "tags": ["O", "B"]}
    plain = LabelFormat([row], "x.jsonl").example(row, "")
    for words, tags in (
        ('["not", "bad"]', '["O", "B"]'),
        ("['not' 'bad']", "('O', 'B')"),
        (row["tokens"], "['O','B']"),
    ):
        written = {"tokens": words, "tags": tags}
        assert LabelFormat([written], "x.csv").example(written, "") == plain


@pytest.mark.parametrize(("written", "held_out"), [("{}", "{}.0"), ("{}.0", "{}"), ("{}.00", "{}.0")])
def test_numbers_that_are_equal_are_one_class_in_all_files(tokenizer, tmp_path, written, held_out):
    """A table with gaps writes the same classes as 1.0 that another one writes as 1."""
    for name, style in (("train", written), ("test", held_out)):
        lines = [f"the film {n},{style.format(n % 3)}\n" for n in range(30)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    knobs = DataKnobs(train=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"))
    found = load_splits(knobs, tokenizer, LabelCandidates("classification"))
    assert found.summary.labels == [written.format(n) for n in range(3)]
    assert [float(found.test.labels(row)[0]) for row in range(30)] == [n % 3 for n in range(30)]
    assert found.summary.label_counts["test"] == dict.fromkeys(found.summary.labels, 10)
    assert not [warning for warning in found.summary.warnings if "row has" in warning]


def test_a_number_that_two_classes_are_is_neither():
    assert same_class("1.00", ("1", "1.0")) == "1.00"
    assert same_class("1.0", ("1", "1.0")) == "1.0"
    assert same_class("1.0", ("0", "1")) == "1"
    assert same_class("one", ("0", "1")) == "one"


def test_a_word_without_a_token_of_its_own_gives_its_class_to_none():
    renderer = WordClassRenderer(None, ["a", "b", "c"])
    words = Example(None, "x yy z", "x:1", labels=("a", "b", "c"), words=("x", "yy", "z"))
    special, behind_x, z = (0, 0), (1, 4), (4, 6)  # tokens that begin with the space before their word
    assert renderer.labels(words, [special, behind_x, z, special]) == [IGNORED, 1.0, 2.0, IGNORED]
    assert renderer.labels(words, [special, (0, 1), z]) == [IGNORED, 0.0, 2.0]


@pytest.mark.parametrize("missing", [None, "", "  "])
@pytest.mark.parametrize("key", ["title", "content"])
def test_of_two_texts_the_one_that_is_there_is_read_alone(missing, key):
    """In a file, and where a model is asked."""
    row = {"title": "a title", "content": "what it says", "label": "x"}
    columns = LabelFormat([row] * 9, "rows.jsonl")
    assert columns.pair_key == "content"
    found = columns.example(row | {key: missing}, "rows.jsonl:1")
    alone = row["content" if key == "title" else "title"]
    assert (found.text, found.second_text) == (alone, "")
    pair = tuple((missing or "") if name == key else row[name] for name in ("title", "content"))
    assert tuple(part.strip() for part in as_pair(pair)) == (alone, "")
    with pytest.raises(RowError):
        columns.example(row | {"title": missing, "content": missing}, "rows.jsonl:1")
    with pytest.raises(DataError):
        as_pair((missing or "", missing or ""))
