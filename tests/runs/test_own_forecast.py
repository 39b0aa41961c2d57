"""A run forecasts itself, and says how far it was off."""

from __future__ import annotations

import json
import time

import pytest

import microplane
from microplane.report.page import write_report
from microplane.runs import own_forecast
from microplane.runs.own_forecast import ForecastSection
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
