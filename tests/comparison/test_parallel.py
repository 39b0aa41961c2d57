"""Several trials at once: the table of one after another, each in a process of its own, and all of them stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import microplane
from microplane.comparison.course import Course
from microplane.comparison.machines import ThisMachine
from microplane.comparison.result import _notes
from microplane.comparison.trials import StoppedError, Trials
from microplane.errors import ConfigError
from tests.comparison.kit import SETS, place, table


class Waiting:
    """Trials that are done once so many run at the same time."""

    def __init__(self, at_once: int):
        self.at_once, self.most, self.stopped = at_once, 0, False
        self.barrier = threading.Barrier(at_once)
        self.now = 0
        self.noting = threading.Lock()

    def work(self, number: int) -> int:
        with self.noting:
            self.now += 1
            self.most = max(self.most, self.now)
        self.barrier.wait(30)
        time.sleep(0.01 * (number % 3))
        with self.noting:
            self.now -= 1
        return number

    def stop(self) -> None:
        self.stopped = True
        self.barrier.abort()


def course(trials: Waiting) -> Course:
    return Course(trials, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_so_many_run_at_once_and_come_in_their_order(at_once):
    trials = Waiting(at_once)
    assert course(trials)._side_by_side(trials.work, range(6)) == list(range(6))
    assert trials.most == at_once


def test_an_interrupt_stops_all_of_them():
    trials = Waiting(3)
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            raise KeyboardInterrupt
        return trials.work(number)

    with pytest.raises(KeyboardInterrupt):
        course(trials)._side_by_side(work, range(40))
    assert trials.stopped
    assert len(begun) < 40


def test_a_process_that_was_stopped_is_no_failed_trial(tmp_path, monkeypatch):
    """It saves and ends, and is gone on with later; none is begun after it."""
    trials = Trials(tmp_path, SimpleNamespace(), SimpleNamespace(), ThisMachine(2))  # type: ignore[arg-type]
    sleeping = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    monkeypatch.setattr(Trials, "command", lambda self, trial: sleeping)
    trial = SimpleNamespace(name="one", steps=1)
    ends: list[BaseException] = []

    def run() -> None:
        try:
            trials.run(trial)  # type: ignore[arg-type]
        except StoppedError as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not trials.running:
        time.sleep(0.01)
    trials.stop()
    thread.join(30)
    assert len(ends) == 1
    assert not trials.ledger
    with pytest.raises(StoppedError):
        trials.run(SimpleNamespace(name="two", steps=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, -1])
def test_at_least_one_has_to_run(number, tmp_path):
    with pytest.raises(ConfigError, match="at least one trial"):
        microplane.compare("smollm2", "rows.jsonl", out=tmp_path / "out", parallel=number)


def begun(model: str, data: str, out: Path, *more: str) -> list[str]:
    sets = [part for name, value in SETS.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "microplane", "compare", "--quiet", model, data]
    return [*command, "--methods", "lora,ia3", "--seeds", "2", "--out", str(out), *more, *sets]


def test_it_is_told_that_trials_shared_a_machine():
    how = {"task": None, "seeds": 1, "learning_curve": False}
    plan = SimpleNamespace(rows=SimpleNamespace(told=""), answer_rows=9, counts={"test": 9}, **how)
    alone, shared = (" ".join(_notes(plan, 0, {}, {}, at_once)) for at_once in (1, 3))
    assert "ran at once" not in alone
    assert "Up to 3 trials ran at once" in shared


@pytest.mark.slow
def test_two_at_once_end_with_the_table_of_one_after_another_also_after_ctrl_c(tmp_path):
    model, data = place(tmp_path)
    straight, parallel = tmp_path / "straight", tmp_path / "parallel"
    subprocess.run(begun(model, data, straight), check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(begun(model, data, parallel, "--parallel", "2"), stdout=subprocess.DEVNULL)
    while len(list(parallel.glob("trials/*/.running"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    assert not list(parallel.glob("trials/*/.running"))  # nothing runs on
    again = [sys.executable, "-m", "microplane", "compare", "--quiet", "--resume", str(parallel), "--parallel", "2"]
    subprocess.run(again, check=True, stdout=subprocess.DEVNULL)
    shared = table(parallel)
    (told,) = [note for note in shared["notes"] if "ran at once" in note]
    shared["notes"].remove(told)
    assert shared == table(straight)
