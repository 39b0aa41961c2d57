"""Each array means one thing: targets of text, the cut of a pair, the second text of a row with labels."""

from __future__ import annotations

import json
from contextlib import ExitStack

import numpy as np
import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.load_splits import load_splits
from microplane.data.store import SplitWriter, TokenDataset, TokenRow, pack
from microplane.data.tokenizers.load import load_tokenizer
from microplane.objectives.select import NEXT_TOKEN, LabelCandidates
from tests import labels
from tests.labels import save_wordpiece, write
from tests.tiny import PAIRS, save_byte_tokenizer

ARRAYS = ("ids", "targets", "segments", "ends", "source_lengths", "counts", "labels", "places")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def sizes(cache):
    """Items in each array of the training rows, as the cache's summary says, in units of rows and tokens."""
    (file,) = cache.glob("*/summary.json")
    info = json.loads(file.read_text())["splits"]["train"]
    units = {0: "none", info["rows"]: "rows", info["tokens"]: "tokens", 2 * info["rows"]: "two a row"}
    assert set(info["sizes"]) == set(ARRAYS)
    return {name: units[size] for name, size in info["sizes"].items()}


def text_file(tmp_path):
    rows = [{"inputs": f"in {n}", "targets": "t" * (1 + n % 5)} for n in range(30)]
    return write(tmp_path / "rows.jsonl", rows)


def test_text_has_targets_alone(tmp_path, cache):
    save_byte_tokenizer(tmp_path)
    train = load_splits(DataKnobs(train=str(text_file(tmp_path))), load_tokenizer(tmp_path), NEXT_TOKEN).train
    found = sizes(cache)
    assert (found["targets"], found["segments"], found["source_lengths"], found["labels"]) == ("tokens", *3 * ["none"])
    assert [int(train[row][1].sum()) for row in range(len(train))] == train.trained_counts.tolist()


def test_a_pair_keeps_its_cut(tmp_path, cache):
    save_byte_tokenizer(tmp_path, ends=True)
    train = load_splits(DataKnobs(train=str(text_file(tmp_path))), load_tokenizer(tmp_path), PAIRS).train
    found = sizes(cache)
    assert (found["targets"], found["segments"], found["source_lengths"]) == ("tokens", "none", "rows")
    for row in range(len(train)):
        ids, targets = train[row]
        source, target = train.pair(row)
        assert np.array_equal(np.concatenate([source, target]), ids)
        assert targets.tolist() == [False] * len(source) + [True] * len(target)


@pytest.mark.parametrize(("rows", "per"), [(labels.pairs, "rows"), (labels.tags, "tokens")])
def test_a_row_with_labels_has_segments_and_no_target(rows, per, tmp_path, cache):
    save_wordpiece(tmp_path)
    file = write(tmp_path / "rows.jsonl", rows(40))
    splits = load_splits(DataKnobs(train=str(file)), load_tokenizer(tmp_path), LabelCandidates(None))
    found = sizes(cache)
    assert (found["targets"], found["segments"], found["source_lengths"], found["labels"]) == (
        "none", "tokens", "none", per,
    )  # fmt: skip
    for row in range(len(splits.train)):
        ids, targets = splits.train[row]
        assert not targets.any()
        assert len(targets) == len(splits.train.segments(row)) == len(ids)
    assert any(splits.train.segments(row).any() for row in range(len(splits.train))) == (rows is labels.pairs)


def test_the_summary_names_the_format_and_the_objective(tmp_path):
    save_wordpiece(tmp_path)
    file = write(tmp_path / "rows.jsonl", labels.pairs(40))
    summary = load_splits(DataKnobs(train=str(file)), load_tokenizer(tmp_path), LabelCandidates(None)).summary
    assert (summary.format_name, summary.objective, summary.counted) == ("classification", "classification", "rows")
    assert summary.format.startswith("classification (")


def test_a_token_belongs_to_the_row_that_it_stands_in(tmp_path):
    lengths = [3, 1, 4]
    with ExitStack() as stack:
        writer = SplitWriter(tmp_path, "x", [tmp_path / "x.jsonl"], (0,), False, stack)
        for row, length in enumerate(lengths):
            writer.add(pack([TokenRow([row] * length, [True] * length)], [(0, row + 1)]))
        info = writer.close()
    dataset = TokenDataset(tmp_path, "x", info)
    assert [dataset.row_at(token) for token in range(8)] == [0, 0, 0, 1, 2, 2, 2, 2]
