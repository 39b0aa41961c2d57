"""Numbers as people say them: units, roundings, and which way is better."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from microplane.report import words
from microplane.report.curves import best_step
from microplane.report.story import confusion, forecast, leading_metric


@pytest.mark.parametrize(
    ("said", "value", "text"),
    [
        (words.share, 0.847, "84.7%"),
        (words.share, 0.9999, ">99.9%"),
        (words.share, 1.0, "100%"),
        (words.share, 0.0001, "<0.1%"),
        (words.share, 0.0, "0%"),
        (words.size, 999, "999 bytes"),
        (words.size, 1_000_000, "1 MB"),
        (words.size, 1_000_000_000, "1 GB"),
        (words.size, 1_340_000_000, "1.34 GB"),
        (words.duration, 0.34, "0.34 s"),
        (words.duration, 59.9, "59.9 s"),
        (words.duration, 59.97, "1 min"),
        (words.duration, 60.2, "1 min"),
        (words.duration, 199.6, "3 min 20 s"),
        (words.duration, 7_500, "2 h 5 min"),
        (words.count, 9_216, "9,216"),
        (words.count, 4_880_000, "4.88 million"),
    ],
)
def test_numbers_in_words(said, value, text):
    assert said(value) == text


def test_which_way_is_better_the_result_says():
    assert words.change("accuracy", 0.5, 0.75) == ("+25 points", "better")
    assert words.change("loss", 2.0, 1.5) == (f"{words.MINUS}0.5", "better")
    assert words.change("edits", 2.0, 1.5, lower=["edits"])[1] == "better"
    assert words.change("loss", 2.0, 1.5, lower=[])[1] == "worse"
    assert words.change("accuracy", 0.5, 0.5)[1] == "same"


def record(**result):
    result = {name: {} for name in ("train", "metrics", "forecast")} | result
    return SimpleNamespace(result=result, validation=[], metrics=lambda side: result["metrics"].get(side, {}))


def test_the_outcome_is_told_by_what_measures_the_task():
    after = {"loss": 1.0, "perplexity": 2.7, "json_valid": 1.0, "json_equal": 0.5}
    assert leading_metric(record(metrics={"after": after})) == "json_equal"
    assert leading_metric(record(metrics={"after": {"loss": 1.0, "json_valid": 1.0}})) == "json_valid"
    assert leading_metric(record(metrics={"after": {"loss": 1.0, "perplexity": 2.7}})) == "perplexity"
    assert leading_metric(record()) is None


def test_a_forecast_above_what_was_measured_was_too_high():
    found = {"seconds": 12.0, "peak_memory_bytes": 9, "off": {"seconds": 0.2, "peak_memory_bytes": -0.1}}
    off = {figure.key: how for _, figure, _, how in forecast(record(forecast=found))}
    assert off == {"forecast.seconds": "20% too high", "forecast.peak_memory_bytes": "10% too low"}


def test_how_often_which_class_is_said_is_a_share_of_its_own_rows():
    found = SimpleNamespace(by_class=lambda section: {"a": {}, "b": {}}, confusion=[[3, 1], [0, 0]])
    (_, first), (_, second) = confusion(found)
    assert [(cell.count, cell.share, cell.right) for cell in first] == [(3, 0.75, True), (1, 0.25, False)]
    assert [cell.share for cell in second] == [0, 0]


def test_the_best_step_is_the_last_that_was_the_best():
    """Where the result does not say it: a run that is going on."""
    run = record()
    run.validation = [{"step": step, "best": best} for step, best in ((0, True), (10, True), (20, False))]
    assert best_step(run) == 10
    run.result["train"]["best_step"] = 20
    assert best_step(run) == 20
    run.result["train"]["best_step"] = 15
    assert best_step(run) is None
