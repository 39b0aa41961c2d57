"""Processes that are copies of one that has imported everything: as those that import for themselves, but sooner."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from microplane.comparison.fork_server import Forked, ForkServer
from microplane.comparison.machines import ThisMachine, this_machine
from microplane.comparison.processes import Local, LostError, Running
from tests.comparison.kit import place

PROGRAM = [sys.executable, "-m", "microplane"]


@pytest.fixture(scope="module")
def server():
    with closing(ForkServer()) as found:
        yield found


def ended(process: Running, within: float = 120) -> int:
    code = process.wait(within)
    assert code is not None, "it has not ended"
    return code


def training(folder: Path, out: Path, *more: str) -> list[str]:
    model, rows = place(folder)
    knobs = {"train.steps": 6, "train.batch_size": 4, "train.threads": 1, "eval.rows": 4, "eval.max_new_tokens": 2}
    sets = [part for name, value in knobs.items() for part in ("--set", f"{name}={value}")]
    return [*PROGRAM, "train", model, rows, "--quiet", "--name", out.name, *sets, "--set", f"runs={out.parent}", *more]


def test_a_run_is_the_same_as_in_a_process_that_was_begun_for_it(server, tmp_path):
    codes, runs = [], [tmp_path / "forked", tmp_path / "own"]
    for run, machine in zip(runs, (server, ThisMachine(server=Never())), strict=True):
        process = machine.begin(training(tmp_path / "given", run), tmp_path / f"{run.name}.txt")
        assert isinstance(process, Forked if machine is server else Local)
        codes.append(ended(process))
    assert codes == [0, 0], (tmp_path / "forked.txt").read_text()
    forked, own = ((run / "metrics.jsonl").read_bytes() for run in runs)
    assert forked == own
    results: list[dict[str, Any]] = [json.loads((run / "result.json").read_text()) for run in runs]
    assert results[0]["metrics"] == results[1]["metrics"]
    peaks = [one["train"]["peak_memory_bytes"] for one in results]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05)  # what is shared with the server counts too
    assert results[0]["seconds"] < results[1]["seconds"] + 5  # its time begins with itself, not with the server


class Never(ForkServer):
    def begin(self, command, log):
        return None


def test_each_has_its_own_end_and_words(server, tmp_path):
    """Begun by several threads at once."""
    asked = {
        "there is no folder": ["runs", "nowhere"],
        "holds no run": ["runs", str(tmp_path)],
        "": ["models"],
        "See python -m microplane runs --help": ["runs", "--nothing"],
    }
    begun: dict[str, Forked] = {}

    def begin(words: str, number: int) -> None:
        process = server.begin([*PROGRAM, *asked[words]], tmp_path / f"{number}.txt")
        assert process is not None
        begun[words] = process

    threads = [threading.Thread(target=begin, args=(words, number)) for number, words in enumerate(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, words in enumerate(asked):
        assert (ended(begun[words]) != 0) == bool(words)
        assert words in (tmp_path / f"{number}.txt").read_text()


def test_it_is_interrupted_saves_and_ends_in_a_session_of_its_own(server, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log.txt"
    process = server.begin(training(tmp_path / "given", out, "--set", "train.steps=100000"), log)
    assert process is not None
    assert process.wait(0) is None
    while not (out / "speed.jsonl").is_file():
        assert process.wait(0.05) is None, log.read_text()
    assert os.getsid(process.pid) == process.pid
    assert signal.SIGINT not in ignored(process.pid)
    streams = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
    assert streams == [os.devnull, os.devnull, str(log)]
    process.interrupt()
    assert ended(process) in (3, 128 + signal.SIGTERM)
    assert json.loads((out / "result.json").read_text())["status"] != "success"
    process.interrupt()  # of what has ended, nothing is ended


def ignored(pid: int) -> set[int]:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 32) if mask >> (number - 1) & 1}


def test_a_process_that_is_killed_is_told_by_its_signal(server, tmp_path):
    process = server.begin(
        training(tmp_path / "given", tmp_path / "run", "--set", "train.steps=100000"), tmp_path / "log"
    )
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL


def test_without_its_server_nobody_can_tell_and_trials_import_for_themselves(tmp_path):
    with this_machine() as machine:
        command = training(tmp_path / "given", tmp_path / "run", "--set", "train.steps=100000")
        process = machine.begin(command, tmp_path / "log.txt")
        assert isinstance(process, Forked)
        parent = psutil.Process(process.pid).parent()
        assert parent is not None
        parent.kill()
        with pytest.raises(LostError):
            process.wait(60)
        assert psutil.pid_exists(process.pid)  # the trial goes on
        os.kill(process.pid, signal.SIGKILL)
        after = machine.begin([*PROGRAM, "models"], tmp_path / "log.txt")
        assert isinstance(after, Local)
        assert ended(after) == 0


def test_it_ends_with_who_has_begun_it(tmp_path):
    with this_machine() as machine:
        process = machine.begin([*PROGRAM, "models"], tmp_path / "log.txt")
        server = machine.server._process
        assert ended(process) == 0
    assert server is not None
    assert server.returncode == 0


@pytest.mark.parametrize("command", [[sys.executable, "-c", "pass"], [sys.executable, "-m", "json.tool"], []])
def test_other_commands_are_not_for_it(tmp_path, command):
    server = ForkServer()
    assert server.begin(command, tmp_path / "log.txt") is None
    assert server._process is None


def test_elsewhere_than_on_linux_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ForkServer().begin([*PROGRAM, "models"], tmp_path / "log.txt") is None


def test_an_interrupt_while_it_answers_ends_what_was_begun(server, tmp_path, monkeypatch):
    """Ctrl-C between asking and knowing: no trial goes on of which nobody knows."""
    ready = server.begin([*PROGRAM, "models"], tmp_path / "first.txt")
    assert ready is not None
    ended(ready)
    wait, interrupted = server._changed.wait_for, []

    def interrupting(found, seconds=None):
        if found == server._answered and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return wait(found, seconds)

    monkeypatch.setattr(server._changed, "wait_for", interrupting)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        server.begin(training(tmp_path / "given", out, "--set", "train.steps=100000"), tmp_path / "log.txt")
    end = time.monotonic() + 60
    while server._begun not in server._codes:
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.05)
