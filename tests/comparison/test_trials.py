"""Processes of trials: why they failed, when that is no method's fault, and how they are stopped."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from microplane.comparison import trials as module
from microplane.comparison.folder import PLAN
from microplane.comparison.plan import Trial
from microplane.comparison.processes import Local
from microplane.comparison.trials import StoppedError, Trials
from microplane.data.progress import Silent
from microplane.errors import TrainingError
from microplane.files import lock

TRIAL = Trial("lora", "short", 1e-3, 5)
FULL = os.strerror(errno.ENOSPC)


class Ends:
    """A machine on which a trial ends at once with an exit code."""

    at_once, threads = 1, None

    def __init__(self, code: int, work: Callable[[Path], None]):
        self.code, self.work = code, work

    def begin(self, command, log):
        log.touch()
        self.work(log)
        return SimpleNamespace(wait=lambda seconds: self.code, interrupt=lambda: None)


def made(folder: Path, machines) -> Trials:
    (folder / PLAN).write_text("{}")
    trials = Trials(folder, SimpleNamespace(), Silent(), machines)  # type: ignore[arg-type]
    trials.command = lambda trial: []  # type: ignore[method-assign]
    return trials


def says(trials_folder: Path, **result) -> None:
    place = trials_folder / "trials" / TRIAL.name
    place.mkdir(parents=True, exist_ok=True)
    (place / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    "work",
    [
        lambda folder: lambda log: says(folder, status="failed", error=f"OSError: [Errno 28] {FULL}: 'optimizer'"),
        lambda folder: lambda log: log.write_text(f"error: runs/x: {FULL}. Make room, and try again; a run goes on"),
        lambda folder: lambda log: log.write_text(f"error: the rows cannot be written to x: {FULL}; make room"),
    ],
)
def test_a_full_disk_is_no_methods_fault(tmp_path, work):
    """The comparison ends with one message, and goes on once there is room: the trial isn't in its ledger."""
    trials = made(tmp_path, Ends(1, work(tmp_path)))
    with pytest.raises(TrainingError, match=rf"{TRIAL.name}: .*{FULL}.*All that is done is kept: make room") as told:
        trials.run(TRIAL)
    assert str(told.value).count("ake room, and") == 1
    assert str(told.value).endswith(f"go on with: microplane compare --resume {tmp_path}")
    assert (trials.ledger, (tmp_path / "ledger.json").exists()) == ({}, False)


def test_where_no_room_is_left_a_trial_that_could_not_even_say_so_is_not_blamed(tmp_path, monkeypatch):
    trials = made(tmp_path, Ends(1, lambda log: None))
    monkeypatch.setattr(module, "free_disk", lambda folder: 1000)
    with pytest.raises(TrainingError, match="make room, and go on"):
        trials.run(TRIAL)


@pytest.mark.parametrize(
    ("code", "log", "reason"),
    [
        (1, "error: loss is not a number", "loss is not a number"),
        (1, "", "it ended with exit code 1"),
        (-9, "error: x", "its process was ended by SIGKILL: perhaps for want of memory"),
    ],
)
def test_other_failures_are_the_trials_own(tmp_path, code, log, reason):
    outcome = made(tmp_path, Ends(code, lambda path: path.write_text(log))).run(TRIAL)
    assert outcome.reason == reason
    assert json.loads((tmp_path / "ledger.json").read_text())[0]["reason"] == reason


def test_what_an_earlier_sitting_said_is_not_the_reason_of_this_one(tmp_path):
    says(tmp_path, status="failed", error=f"OSError: {FULL}")
    outcome = made(tmp_path, Ends(1, lambda log: log.write_text("error: the base is gone"))).run(TRIAL)
    assert outcome.reason == "the base is gone"
    says(tmp_path, status="failed", error="diverged")
    again = made(tmp_path, Ends(1, lambda log: says(tmp_path, status="failed", error="diverged", seconds=2)))
    assert again.run(TRIAL).reason == "diverged"


class Stubborn:
    """Ends a while after it was interrupted; notes what happens to it."""

    def __init__(self, name: str, noted: list[str]):
        self.name, self.noted, self.left = name, noted, 2

    def interrupt(self):
        self.noted.append(f"interrupt {self.name}")

    def wait(self, seconds):
        self.left -= 1
        return None if self.left else self.noted.append(f"end {self.name}") or 0


def test_all_are_interrupted_before_one_is_waited_for():
    noted: list[str] = []
    trials = Trials(Path(), SimpleNamespace(), Silent())  # type: ignore[arg-type]
    trials.running += [Stubborn("a", noted), Stubborn("b", noted)]
    trials.stop()
    assert noted == ["interrupt a", "interrupt b", "end a", "end b"]


def test_one_that_begins_while_the_others_are_stopped_is_stopped_too(tmp_path):
    noted: list[str] = []

    class Slow:
        at_once, threads = 2, 1

        def begin(self, command, log):
            trials.stop()  # which doesn't know of this one yet
            return Stubborn("late", noted)

    trials = made(tmp_path, Slow())
    with pytest.raises(StoppedError):
        trials.run(TRIAL)
    assert noted == ["interrupt late", "end late"]


def test_waiting_for_a_process_of_an_earlier_sitting_ends_when_all_are_stopped(tmp_path):
    trials = made(tmp_path, Ends(0, lambda log: None))
    (place := trials.place(TRIAL)).mkdir(parents=True)
    held = lock(place)
    assert held is not None
    threading.Timer(0.05, trials.stop).start()
    with pytest.raises(StoppedError):
        trials.run(TRIAL)
    held.release()


def test_a_trial_is_stopped_also_where_ctrl_c_is_ignored():
    """As by all that a script begins in the background."""
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(30)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    Local(process).interrupt()
    assert process.wait(10) != 0
    process.stdout.close()


def test_a_run_that_was_killed_before_its_report_is_not_done(tmp_path):
    """It goes on, which makes its report, and leaves what else a run leaves at its end."""

    def reports(log: Path) -> None:
        (tmp_path / "trials" / TRIAL.name / "report.html").touch()

    says(tmp_path, status="success")
    trials = made(tmp_path, Ends(0, reports))
    assert not trials.is_done(TRIAL)
    assert trials.run(TRIAL).ok
    assert made(tmp_path, Ends(1, reports)).is_done(TRIAL)
