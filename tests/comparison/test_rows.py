"""The rows of a comparison: copied as they stand, whatever their file holds beside them, and parts of them that a run
can be measured on."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest

from microplane.comparison.rows import _raw, _smaller
from microplane.comparison.search import Lengths
from microplane.data.preparing.holdout import RowClasses
from microplane.runs.inline_data import InlineData, as_json


def test_what_json_has_no_word_for_is_left_out():
    row = {
        "text": "a", "n": 3, "f": 2.5, "yes": True, "none": None, "price": Decimal("1.50"),
        "when": datetime(2026, 1, 2), "raw": b"x", "map": {1: Decimal(2)},
        "list": [1, b"x", {"at": datetime(2026, 1, 2), "say": "b"}],
    }  # fmt: skip
    assert as_json(row) == {
        "text": "a", "n": 3, "f": 2.5, "yes": True, "none": None, "price": 1.5, "list": [1, None, {"say": "b"}],
        "map": {"1": 2.0},
    }  # fmt: skip


def test_rows_of_parquet_are_copied_with_times_and_bytes_beside_them(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = {"text": ["a", "b"], "label": [Decimal("1.5"), Decimal("2")], "at": [datetime(2026, 1, 2)] * 2}
    pq.write_table(pa.table(table | {"raw": [b"x", b"y"]}), tmp_path / "rows.parquet")
    rows = _raw(SimpleNamespace(files=[tmp_path / "rows.parquet"]), {(0, 2)})  # type: ignore[arg-type]
    assert json.loads(InlineData.of_rows(rows).content) == {"text": "b", "label": 2.0}


def split_of(labels: list[list[str]]) -> SimpleNamespace:
    classes = RowClasses()
    for own in labels:
        classes.add(own)
    return SimpleNamespace(hashes=np.random.default_rng(0).permutation(len(labels)).astype(np.uint64), classes=classes)


@pytest.mark.parametrize(
    "labels",
    [
        [["good"], ["bad"]] * 30 + [["rare"], ["once"], ["rare"], ["thrice"], ["thrice"], ["thrice"]],
        [["O", "O", "B"]] * 60 + [["O", "I"], ["X", "I"]],  # of words
        [["a"], ["b"], []] * 20 + [["a", "c"], ["d", "c"]],  # several, or none
    ],
)
def test_each_part_of_the_rows_has_every_class(labels):
    split, among = split_of(labels), np.ones(len(labels), np.bool_)
    among[:10] = False  # held out
    found = _smaller(split, among)  # type: ignore[arg-type]

    def classes(rows: np.ndarray) -> set[str]:
        return {label for row in np.flatnonzero(rows) for label in labels[row]}

    assert classes(found["25"]) == classes(found["50"]) == classes(among)
    assert (found["25"] <= found["50"]).all()
    assert (found["50"] <= among).all()
    assert found["25"].sum() <= 0.25 * among.sum() + len(classes(among))


def test_rows_without_classes_are_parted_as_they_were():
    split, among = split_of([[]] * 40), np.ones(40, np.bool_)
    assert [int(rows.sum()) for rows in _smaller(split, among).values()] == [20, 10]  # type: ignore[arg-type]


def test_a_part_that_is_larger_gets_as_many_passes():
    assert [Lengths(48, {"25": 1 / 3, "50": 0.5}).part(percent) for percent in (25, 50)] == [16, 24]
    assert [Lengths(48).part(percent) for percent in (25, 50)] == [12, 24]
    assert Lengths(3, {"25": 0.1}).part(25) == 1
