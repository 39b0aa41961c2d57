"""`kill -9` at random moments, of the comparison and now and then of its trial too: the table of an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.comparison.kit import SETS, place, table

KILLS = 10


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "microplane", "compare", "--quiet", *arguments]


def begun(model: str, data: str, out: Path) -> list[str]:
    sets = [part for name, value in SETS.items() for part in ("--set", f"{name}={value}")]
    return command(model, data, "--methods", "lora", "--seeds", "2", "--out", str(out), *sets)


def trial_of(out: Path) -> int | None:
    """The process that trains in a comparison's folder now."""
    for note in out.glob("trials/*/.running"):
        words = note.read_text().split()
        if len(words) > 1 and words[1].isdigit():
            return int(words[1])
    return None


def killed_after(arguments: list[str], seconds: float, out: Path, trial_too: bool) -> bool:
    """Whether it was, before it had ended by itself."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        trial = trial_of(out) if trial_too else None
        process.kill()
        process.communicate()
        if trial is not None:
            with suppress(ProcessLookupError):
                os.kill(trial, signal.SIGKILL)
        return True
    assert process.returncode == 0, error.decode()
    return False


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_table(tmp_path):
    rng, (model, data) = random.Random(0), place(tmp_path)
    started = time.monotonic()
    straight, out = tmp_path / "straight", tmp_path / "killed"
    assert not killed_after(begun(model, data, straight), 1200, straight, False)
    whole, kills, arguments = time.monotonic() - started, 0, begun(model, data, out)
    while kills < KILLS and killed_after(arguments, rng.uniform(0.03, 0.15) * whole, out, kills % 2 == 0):
        kills += 1
        if (out / "plan.json").is_file():
            arguments = command("--resume", str(out))
        else:  # it had not begun
            shutil.rmtree(out, ignore_errors=True)
    assert kills == KILLS
    assert not killed_after(arguments, 1200, out, False)
    assert table(out) == table(straight)
