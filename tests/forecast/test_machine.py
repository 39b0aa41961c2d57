"""The rates of the machine: measured once, told by `microplane machine`."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from microplane.cli.app import app
from microplane.forecast import machine


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "SECONDS", 0.01)
    monkeypatch.setattr(machine, "PRODUCT", (128, 64, 64))  # some processors take seconds of another in bfloat16


def test_rates_are_measured_once(monkeypatch):
    assert machine.known() is None
    first = machine.measured()
    assert machine.known() == machine.measured() == first
    assert first.float32 > 1e8
    assert first.copy > 1e7
    monkeypatch.setattr(machine, "_median", lambda do: 1.0)
    assert machine.measured() == first
    assert machine.measured(refresh=True).overhead == 1.0


def test_another_number_of_threads_is_another_machine():
    machine.measured()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert machine.known() is None
    finally:
        torch.set_num_threads(before)


def test_a_damaged_entry_is_measured_anew(tmp_path):
    machine.measured()
    (entry,) = (tmp_path / "machine").iterdir()
    entry.write_text('{"rates": {}}')
    assert machine.known() is None


def test_the_command():
    told = CliRunner().invoke(app, ["machine"], catch_exceptions=False).output
    assert "billion operations" in told
    assert "bfloat16" in told
    found = json.loads(CliRunner().invoke(app, ["machine", "--json"], catch_exceptions=False).stdout)
    assert found["float32"] == machine.known().float32
    assert found["threads"] == torch.get_num_threads()


def test_what_is_slow_is_done_once(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def slow():
        calls.append(None)
        clock[0] += 2 * machine.SECONDS

    assert machine._median(slow) == 2 * machine.SECONDS
    assert len(calls) == 1


def test_the_median_counts(monkeypatch):
    """Of what takes longer and longer: the first time is left out."""
    clock, took = [0.0], iter(0.001 * number for number in range(1, 100))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def work():
        clock[0] += next(took)

    assert machine._median(work) == pytest.approx(0.004)  # of 2, 3, 4 and 5 ms: the first four that take 10 ms


def test_rates_are_of_what_is_done(monkeypatch):
    """Each number multiplied is two operations; what is copied is read and written."""
    monkeypatch.setattr(machine, "_median", lambda do: 2.0)
    rates = machine.measured(refresh=True)
    assert (rates.float32, rates.copy, rates.overhead) == (128 * 64 * 64, machine.COPIED, 2.0)
    rates = machine.Rates(float32=1.0, bfloat16=2.0, int8=None, copy=3.0, overhead=4.0)
    assert [rates.products(dtype) for dtype in (torch.float32, torch.bfloat16)] == [1.0, 2.0]


def test_small_rates_are_no_zeros(monkeypatch):
    monkeypatch.setattr(machine, "measured", lambda refresh: machine.Rates(2e11, 5.1e8, 4.3e8, 5e9, 6e-6))
    told = CliRunner().invoke(app, ["machine"], catch_exceptions=False).output
    for line in ("float32      200 billion", "bfloat16     0.5", "int8         0.4"):
        assert line in told
