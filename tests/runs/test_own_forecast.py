"""A run forecasts itself, and says how far it was off."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

import microplane
from microplane.report.page import write_report
from microplane.runs import own_forecast
from microplane.runs.own_forecast import ForecastSection, try_again_if_far_off
from tests.data.preparing.test_doubts import asked
from tests.tiny import save_tiny_folder

SETS = {"train.threads": 1, "model.dtype": "float32", "eval.rows": 0, "train.steps": 2}


@pytest.fixture
def model(tmp_path):
    return save_tiny_folder(tmp_path / "model")


def train(model, tmp_path, **others):
    return microplane.train(model, asked(40), set=SETS | {"runs": str(tmp_path / "runs")}, **others)


class Said:
    def __init__(self):
        self.lines, self.progress, self.record = [], lambda what: lambda done, total: None, lambda record: None

    def say(self, text):
        self.lines.append(text)


def test_forecast_and_measured_stand_side_by_side(model, tmp_path):
    watch = Said()
    run = train(model, tmp_path, watch=watch)
    found = json.loads((run.folder / "result.json").read_text())["forecast"]
    measured = run.result["train"]["peak_memory_bytes"]
    assert found["measured"]["peak_memory_bytes"] == measured
    assert found["off"]["peak_memory_bytes"] == pytest.approx(found["peak_memory_bytes"] / measured - 1, abs=1e-4)
    parts = ("process", "base", "adapter", "gradients", "optimizer", "activations")
    assert found["peak_memory_bytes"] == sum(found["parts"][part] for part in parts)
    before, after = (line for line in watch.lines if line.startswith("forecast"))
    assert "of memory at most" in before
    assert "too low" in after or "too high" in after
    assert "Forecast and measured" in write_report(run.folder).read_text()


def test_it_costs_a_small_run_next_to_nothing(model, tmp_path, monkeypatch):
    taken, real = [], own_forecast._forecast

    def timed(*how):
        began = time.perf_counter()
        found = real(*how)
        taken.append(time.perf_counter() - began)
        return found

    monkeypatch.setattr(own_forecast, "_forecast", timed)
    monkeypatch.setattr("microplane.forecast.machine.measured", lambda *how: pytest.fail("measured unasked"))
    train(model, tmp_path)
    assert taken[0] < 0.1


def test_a_run_does_not_end_with_its_forecast(model, tmp_path, monkeypatch):
    def fail(*how):
        raise RuntimeError("no such shape\nand more")

    monkeypatch.setattr(own_forecast, "_forecast", fail)
    run = train(model, tmp_path)
    assert run.result["status"] == "success"
    assert run.result["forecast"]["reason"] == "for RuntimeError: no such shape"
    assert "Forecast and measured" not in write_report(run.folder).read_text()


@pytest.mark.parametrize(
    ("measured", "steps", "forgotten"),
    [(2.0, 50, False), (3.9, 50, False), (4.1, 50, True), (0.9, 50, True), (1.1, 50, False), (0.1, 5, False)],
)
def test_blocks_whose_time_was_far_off_are_tried_anew(monkeypatch, measured, steps, forgotten):
    """They were tried on a busy machine, and would tell every run after it the same."""
    asked_for = []
    monkeypatch.setattr(own_forecast, "forget_blocks", lambda *how: asked_for.append(how))
    monkeypatch.setattr(own_forecast, "run_at_once", lambda prepared: "at once")
    prepared = SimpleNamespace(shapes="shapes", config=SimpleNamespace(train="knobs"))
    found = ForecastSection(peak_memory_bytes=9, step_seconds=2.0, seconds=100.0).beside(steps, measured * steps, 9)
    assert try_again_if_far_off(prepared, found, steps) is forgotten
    assert asked_for == [("shapes", "at once", "knobs")] * forgotten
    assert not try_again_if_far_off(prepared, ForecastSection(reason="none was made"), steps)


def test_a_run_asks_whether_it_was_far_off(model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("microplane.runs.train.try_again_if_far_off", lambda *how: seen.append(how))
    train(model, tmp_path)
    ((_, found, steps),) = seen
    assert found.off
    assert steps == SETS["train.steps"]


def test_how_far_it_was_off():
    made = ForecastSection(peak_memory_bytes=900, step_seconds=2.0, seconds=20.0)
    found = made.beside(steps=10, seconds=16.0, peak_memory_bytes=1000)
    assert found.measured == {"peak_memory_bytes": 1000, "step_seconds": 1.6, "seconds": 16.0}
    assert found.off == {"peak_memory_bytes": -0.1, "step_seconds": 0.25, "seconds": 0.25}
    assert found.off_line() == "memory 1 kB, the forecast 10% too low; training 16 s, the forecast 25% too high"


def test_what_was_not_forecast_is_not_off():
    found = ForecastSection(peak_memory_bytes=900).beside(steps=0, seconds=0.0, peak_memory_bytes=1000)
    assert found.off == {"peak_memory_bytes": -0.1}
    assert ForecastSection(reason="for nothing").beside(1, 1.0, 1).off_line() is None


def before(model, tmp_path, rows, **sets):
    """What a run's forecast counts before its first step."""
    how = SETS | {"train.steps": None, "runs": str(tmp_path / "runs")} | sets
    return microplane.train(model, rows, set=how).result["forecast"]["parts"]["before"]


def test_answers_before_training_are_counted(model, tmp_path):
    none = {"filled": 0, "vectors": 0, "read": 0, "cached": 0, "answers": 0}
    assert before(model, tmp_path, asked(40), **{"train.epochs": 1}) == none
    found = before(model, tmp_path, asked(40), **{"train.epochs": 1, "eval.rows": 3, "eval.max_new_tokens": 2})
    assert (found["filled"], found["answers"], found["cached"]) == (0, 3, 3 * 128)  # a row takes 64 or 128 tokens
    assert 3 * 64 < found["read"] < 3 * 128
    sets = {"train.epochs": 1, "eval.rows": 3, "eval.max_new_tokens": 1000}
    assert before(model, tmp_path, asked(40), **sets) == found  # the context is 128
    assert list(map(own_forecast._capacity, (1, 64, 65, 128, 129, 300))) == [64, 64, 128, 128, 256, 512]


def test_features_that_are_kept_are_counted(model, tmp_path):
    def told(**sets):
        run = microplane.train(
            model, asked(40), set=SETS | {"train.steps": None, "runs": str(tmp_path / "runs"), **sets}
        ).result
        return run["forecast"]["parts"]["before"], run["train"]["feature_cache"], run["data"]["tokens"]

    last = {"method.name": "last-n", "method.n": 1}
    for no in ({"train.epochs": 1}, {"train.epochs": 2, "train.feature_cache": "off"}):
        assert told(**last, **no)[0]["vectors"] == told(**last, **no)[0]["filled"] == 0
    counted, kept, tokens = told(**last, **{"train.epochs": 2})
    both = tokens["train"] + tokens["validation"]
    assert kept["bytes"] == counted["vectors"] * 32 * 4
    assert (counted["vectors"], counted["filled"]) == (both, min(8192, tokens["train"]))
    assert told(**{"method.name": "lora", "train.epochs": 2})[0]["vectors"] == 0
