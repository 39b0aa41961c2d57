"""Which method fits the data, and what is said of classes that are too rare or too common."""

from __future__ import annotations

import pytest

from microplane.data.preparing.advice import advise, fitting
from microplane.data.preparing.summary import DataSummary


def summary(rows, counts=None, task="classification"):
    counts = counts or {}
    made = DataSummary(
        "x", "none", None, 64, {}, "file", "x", "x", rows={"train": rows}, task=task, labels=list(counts)
    )
    made.label_counts = {"train": counts}
    return made


@pytest.mark.parametrize(
    ("rows", "counts", "task", "fits"),
    [
        (300, {"a": 150, "b": 150}, "classification", "head-only"),
        (3000, {"a": 1500, "b": 1500}, "classification", "lora"),
        (30_000, {"a": 15_000, "b": 15_000}, "classification", "full"),
        (30_000, {"a": 29_990, "b": 10}, "classification", "lora"),
        (30_000, {"a": 29_981, "b": 19}, "classification", "lora"),
        (30_000, {"a": 29_980, "b": 20}, "classification", "full"),
        (300, {}, None, "lora"),
        (50_000, {}, None, "full"),
        (300, {}, "regression", "head-only"),
    ],
)
def test_what_fits_follows_from_size_and_balance(rows, counts, task, fits):
    assert f": {fits} fits, for " in advise(summary(rows, counts, task), fits)[0]
    other = "lora" if fits != "lora" else "full"
    assert advise(summary(rows, counts, task), other)[0].endswith(f"; {other} was chosen")
    assert "was chosen" not in advise(summary(rows, counts, task), fits)[0]


@pytest.mark.parametrize(
    ("rows", "near", "fits"),
    [(300, 0.05, "lora"), (300, 0.3, "head-only"), (30_000, 0.05, "full"), (30_000, 0.3, "lora")],
)
def test_what_is_near_to_what_the_model_does_already_needs_less(rows, near, fits):
    """A head alone learns what the features tell already; of anything else they tell too little."""
    assert fitting(summary(rows, {"a": rows // 2, "b": rows // 2}), near)[0] == fits


def test_lopsided_and_rare_classes_are_named():
    lines = advise(summary(1000, {"yes": 985, "no": 10, "maybe": 5}), "lora")
    assert "always answering 'yes' would be right for 98% of the training rows: look at macro F1" in lines[1]
    assert "2 classes have fewer than 20 training rows, too few to learn or to measure: maybe, no" in lines[2]
    assert "the class 'maybe' has 5 rows only" in lines[0]


def test_a_balanced_set_gets_one_line():
    assert len(advise(summary(1000, {"a": 500, "b": 500}), "lora")) == 1


@pytest.mark.parametrize(("common", "told"), [(79, False), (80, True), (94, True)])
def test_four_in_five_rows_of_a_class_are_lopsided(common, told):
    lines = advise(summary(1000, {"a": 10 * common, "b": 1000 - 10 * common}), "lora")
    assert any(line.startswith(f"always answering 'a' would be right for {common}%") for line in lines) is told
