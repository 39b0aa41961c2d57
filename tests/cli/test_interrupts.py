"""Ctrl-C and SIGTERM in real processes, at twelve places of a run: one line, an exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import microplane
from microplane.errors import CheckpointError, ConfigError
from tests.comparison.kit import own_cache
from tests.tiny import SHALLOW, save_tiny_folder

# The command line, with a signal that arrives when a function is entered for the nth time.
SIGNALLED = """
import importlib, os, sys
module, name, number, nth = sys.argv[1:5]
home = importlib.import_module(module)
owner, _, name = name.rpartition(".")
home = getattr(home, owner) if owner else home
real, left = getattr(home, name), [int(nth)]

def entered(*arguments, **named):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), int(number))
    return real(*arguments, **named)

setattr(home, name, entered)
sys.argv = ["microplane", *sys.argv[5:]]
from microplane.__main__ import main
main()
"""
SETS = ["train.threads=1", "train.epochs=2", "eval.rows=2", "eval.max_new_tokens=2", "train.eval_every=4"]


def slowly(*where: str):
    """One of many alike: a process each, so it waits for `make test-all`."""
    return pytest.param(where, marks=pytest.mark.slow, id=where[1])


BEFORE = [  # no folder yet, or nothing in it worth keeping
    slowly("microplane.config.build", "build"),
    slowly("microplane.runs.train", "check_config"),
    slowly("microplane.runs.prepare", "load_splits"),
    slowly("microplane.runs.prepare", "build_on_meta"),
    ("microplane.runs.train", "open_base"),
]
BEGUN = [  # a folder that --resume goes on with
    slowly("microplane.runs.train", "measure_base"),
    slowly("microplane.runs.fit", "init_from_data"),
    ("microplane.training.loop", "Training.begin"),
    slowly("microplane.runs.train", "reopen"),
    ("microplane.runs.train", "verify"),
    slowly("microplane.runs.train", "write_report"),
]
IN_ORDER = [("microplane.training.loop", "train_step"), slowly("microplane.training.resume", "save_checkpoint")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    save_tiny_folder(folder / "model", **SHALLOW)
    rows = [{"prompt": f"repeat {i}", "completion": str(i)} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        own_cache(patch, folder)
        yield folder


def command(place: Path, where: tuple[str, str], number: int, nth: int, *arguments: str):
    program = [sys.executable, "-c", SIGNALLED, *where, str(int(number)), str(nth), *arguments]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(program, cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False)


def begin(place: Path, where: tuple[str, str], number: int = signal.SIGINT, nth: int = 1):
    name = f"at-{where[1]}-{int(number)}-{nth}".replace(".", "-")
    sets = [part for knob in SETS for part in ("--set", knob)]
    return place / "runs" / name, command(
        place, where, number, nth, "train", "model", "rows.jsonl", "--name", name, *sets
    )


def is_clean(place: Path) -> bool:
    return not [path for path in place.rglob("*") if path.name.endswith(".tmp") or path.name == ".running"]


@pytest.mark.parametrize("where", BEFORE)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_before_the_run_has_begun_no_folder_is_left(place, where, number):
    folder, ended = begin(place, where, number)
    assert ended.returncode == 128 + number
    assert ended.stderr == ("interrupted\n" if number == signal.SIGINT else "ended by SIGTERM\n")
    assert not folder.exists()
    assert is_clean(place)


@pytest.mark.parametrize("where", BEGUN)
def test_a_run_that_has_begun_says_how_it_goes_on(place, where):
    folder, ended = begin(place, where)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr == f"interrupted; go on with: microplane train --resume runs/{folder.name}\n"
    assert json.loads((folder / "result.json").read_text())["status"] == "stopped"
    assert is_clean(place)


@pytest.mark.parametrize("where", IN_ORDER)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_step_is_finished_and_saved(place, where, number):
    folder, ended = begin(place, where, number, nth=2)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr == "stopping after this step, and saving; Ctrl-C again ends at once\n"
    assert re.search(r"stopped after step \d+ of \d+; all is saved", ended.stdout)
    assert list((folder / "resume").glob("step-*"))
    assert is_clean(place)


def test_an_interrupt_in_the_last_step_does_not_wait_for_the_evaluation(place, monkeypatch):
    monkeypatch.chdir(place)
    folder, ended = begin(place, ("microplane.training.loop", "train_step"), nth=6)
    assert ended.returncode == 3, ended.stderr
    assert "stopped after step 6 of 6" in ended.stdout
    assert microplane.resume(folder).result["status"] == "success"


@pytest.mark.parametrize("where", [slowly("microplane.cli.app", "app"), ("microplane.inference.pipeline", "load")])
def test_other_commands_say_it_in_one_line_too(place, where):
    ended = command(place, where, signal.SIGINT, 1, "eval", "model", "rows.jsonl", "--out", "answers.jsonl")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")
    assert not (place / "answers.jsonl").exists()


@pytest.mark.parametrize("where", [("microplane.training.loop", "train_step"), ("microplane.runs.train", "verify")])
def test_a_check_that_is_interrupted_finds_nothing_right(place, where):
    """Its rehearsal has nothing to save and to go on from, and what it would say of half a run is worth nothing."""
    ended = command(place, where, signal.SIGINT, 1, "check", "model", "rows.jsonl", "--set", "train.threads=1")
    assert (ended.returncode, ended.stdout) == (130, ""), ended.stderr
    assert ended.stderr.splitlines()[-1] == "interrupted"
    assert "saving" not in ended.stderr


def test_what_a_process_was_told_to_ignore_stays_ignored(place):
    """As with nohup, or in the background of a script."""
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from microplane.cli import interrupts; "
    program += "interrupts.arm(); signal.raise_signal(signal.SIGINT); print('still here')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout == "still here\n"


def test_a_live_run_is_neither_started_again_nor_resumed(place, monkeypatch):
    """Two real processes: the second, which is this one, is told the number of the first."""
    monkeypatch.chdir(place)
    given = dict(knob.split("=") for knob in [*SETS, "train.steps=100000"])
    sets = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    arguments = [sys.executable, "-m", "microplane", "train", "model", "rows.jsonl", "--name", "live", *sets]
    first = subprocess.Popen(arguments, stdout=-1, text=True)
    try:
        assert first.stdout is not None
        for line in first.stdout:
            if "validation loss" in line:
                break
        told = f"the run runs/live is running in process {first.pid} on "
        with pytest.raises(CheckpointError, match=told):
            microplane.resume("runs/live")
        with pytest.raises(ConfigError, match=told):
            microplane.train("model", "rows.jsonl", set={**given, "name": "live"})
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert (place / "runs" / "live" / "run.yaml").is_file()
    ended = command(
        place, ("microplane.training.loop", "train_step"), signal.SIGINT, 2, "train", "--resume", "runs/live"
    )
    assert ended.returncode == 3, ended.stderr  # a dead process holds nothing


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_where_nothing_may_be_raised_is_not_lost(number):
    program = f"""
import os, time
from microplane.cli import interrupts
interrupts.arm()
class Thing:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        time.sleep(0)
thing = Thing()
try:
    del thing
    time.sleep(20)
except KeyboardInterrupt:
    interrupts.end()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15)
    assert ended.returncode == 128 + number
    assert "Traceback" not in ended.stderr
