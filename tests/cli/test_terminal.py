"""What moves in a terminal, and on a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import microplane
from microplane.cli import terminal
from microplane.cli.terminal import Pace, Terminal, tell
from microplane.data.progress import Calling, Silent, counting, expect
from microplane.runs.fit import VALIDATING
from microplane.runs.train import Run
from tests.tiny import save_tiny_folder


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
    assert out.getvalue().splitlines()[-1].endswith("ETA 1 min 32 s")


def test_what_an_earlier_run_measured_counts_as_what_it_took_then(clock):
    watch, out = on_a_pipe()
    expect(Calling(watch, print), 90)  # as python's callback and the command line are told
    facts = {"steps": 10, "loss": 1.0, "tokens_per_second": 1, "trained_tokens_per_second": 1, "memory_bytes": 1}
    for step in range(1, 4):
        clock.now += 4
        watch.record(facts | {"step": step, "seconds": 4})
    assert out.getvalue().splitlines()[-1].endswith("ETA 1 min 58 s")
    expect(Silent(), 90)


@pytest.mark.parametrize(("every", "more"), [(1, 80), (2, 40), (40, 2)])
def test_validations_are_as_far_apart_as_the_last_two(clock, every, more):
    pace = Pace()
    for step in (0, every):
        pace.begin(VALIDATING)
        clock.now += 3
        pace.end(VALIDATING)
        pace.validated(step)
    assert pace.left(20, 100) == pytest.approx(3 * more)


def test_short_things_that_take_turns_move_on_a_pipe(clock):
    """None of them lasts long enough for a line of its own."""
    watch, out = on_a_pipe()
    facts = {"steps": 90, "loss": 1.0, "tokens_per_second": 1, "trained_tokens_per_second": 1, "memory_bytes": 1}
    for step in range(1, 10):
        for done in (1, 2):
            clock.now += 2
            watch.progress(VALIDATING)(done, 2)
        clock.now += 2
        watch.record(facts | {"step": step, "seconds": 2})
    assert len(out.getvalue().splitlines()) >= 8


def test_a_second_run_knows_how_long_the_untouched_model_took(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    base, told = save_tiny_folder(tmp_path / "base"), []
    rows = [{"prompt": f"say {number}", "completion": f"{number % 3}"} for number in range(30)]
    watch = Silent()
    watch.expect = told.append
    sets = {"runs": str(tmp_path / "runs"), "train.steps": 3, "eval.rows": 2, "eval.max_new_tokens": 2}
    for name in ("first", "second"):
        microplane.train(base, rows, set=sets | {"name": name, "train.threads": 1}, watch=watch)
    assert len(told) == 1
    assert 0 < told[0] < 60


@pytest.mark.parametrize(("method", "merges"), [("lora", True), ("full", True), ("prompt", False), ("prefix", False)])
def test_what_to_do_next_can_be_done(method, merges, capsys):
    """Merging is offered where the method merges, and a name with a blank stands in quotes."""
    figures = {"steps": 1, "steps_planned": 1, "stopped_early": False, "verdict": None}
    result = {"status": "success", "train": figures, "checks": [], "run": {"method": {"name": method}}}
    tell(Run(Path("runs/my run"), result | {"metrics": {"before": {"loss": 2.0}, "after": {"loss": 1.0}}}))
    said = capsys.readouterr().out
    assert "microplane generate 'runs/my run' --interactive" in said
    assert ("microplane merge 'runs/my run' FOLDER" in said) == merges
