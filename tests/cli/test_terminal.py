"""What moves in a terminal, and on a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from microplane.cli import terminal
from microplane.cli.terminal import Pace, Terminal
from microplane.data.progress import counting
from microplane.runs.fit import VALIDATING


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(terminal, "time", made)
    return made


def on_a_pipe():
    out = io.StringIO()
    return Terminal(Console(file=out, width=200, soft_wrap=True)), out


def test_reading_moves_on_a_pipe(clock):
    """It is reported in small pieces, each under the same name."""
    watch, out = on_a_pipe()
    count = counting(watch)
    for row in range(0, 1000, 100):
        clock.now += 2
        count("tokenising rows.jsonl", row, 1000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "tokenising rows.jsonl 300/1,000  ETA 14 s"
    assert len(lines) == 3


def test_what_has_no_known_end_moves_too(clock):
    watch, out = on_a_pipe()
    count = counting(watch)
    for row in range(0, 5000, 1000):
        clock.now += 3
        count("checking rows.jsonl", row, None)
    assert out.getvalue().splitlines() == ["checking rows.jsonl 2,000", "checking rows.jsonl 4,000"]


def test_the_same_thing_twice_is_shown_twice(clock):
    begun = []
    watch = on_a_pipe()[0]
    watch.progress = lambda what: begun.append(what) or (lambda done, total: None)
    count = counting(watch)
    for done in (0, 5, 10, 0, 10):
        count("tokenising", done, 10)
    assert begun == ["tokenising", "tokenising"]


def test_what_is_left_has_the_evaluation_after_the_last_step_in_it(clock):
    pace = Pace()
    for what, seconds in (("loss of the untouched model", 4), ("answers of the untouched model", 16), (VALIDATING, 2)):
        pace.begin(what)
        clock.now += seconds
        pace.end(what)
    for _ in range(50):
        pace.step(0.5)
    assert pace.left(50, 100) == pytest.approx(50 * 0.5 + 5 * 2 + 20)
    assert pace.left(100, 100) == 20


def test_training_tells_its_end_with_it(clock):
    watch, out = on_a_pipe()
    show = watch.progress("loss of the untouched model")
    show(1, 2)
    clock.now += 60
    show(2, 2)
    facts = {"steps": 10, "loss": 1.0, "tokens_per_second": 1, "trained_tokens_per_second": 1, "memory_bytes": 1}
    for step in range(1, 4):
        clock.now += 4
        watch.record(facts | {"step": step, "seconds": 4})
    assert out.getvalue().splitlines()[-1].endswith("ETA 1 min 28 s")
