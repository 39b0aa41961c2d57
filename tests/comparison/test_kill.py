"""`kill -9` at random moments, of the comparison and now and then of its trial too, SIGTERM and Ctrl-C: the table of an
undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.kit import SETS, own_cache, place, table
from tests.labels import encoder_folder, reviews, write

KILLS = 10
WAYS: tuple[int, ...] = (*[signal.SIGKILL] * KILLS, signal.SIGTERM, signal.SIGINT)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "microplane", "compare", "--quiet", *arguments]


def begun(model: str, data: str, out: Path, *more: str, sets: Mapping[str, Any] = SETS) -> list[str]:
    given = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    return command(model, data, "--seeds", "2", "--out", str(out), *more, *given)


def trial_of(out: Path) -> int | None:
    """The process that trains in a comparison's folder now."""
    for note in out.glob("trials/*/.running"):
        words = note.read_text().split()
        if len(words) > 1 and words[1].isdigit():
            return int(words[1])
    return None


def stopped_after(arguments: Sequence[str], seconds: float, out: Path, way: int, trial_too: bool = False) -> bool:
    """Whether it was, before it had ended by itself."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        trial = trial_of(out) if trial_too else None
        process.send_signal(way)
        _, error = process.communicate()
        if trial is not None:
            with suppress(ProcessLookupError):
                os.kill(trial, signal.SIGKILL)
        if way != signal.SIGKILL and process.returncode != -way:  # else it came before anything was imported
            assert process.returncode == 128 + way, error.decode()
            assert "--resume" not in error.decode() or (out / "plan.json").is_file()
        return True
    assert process.returncode == 0, error.decode()
    return False


CASES = {
    "answers": (place, ("--methods", "lora,ia3", "--learning-curve"), SETS),
    "labels": (
        lambda folder: (str(encoder_folder(folder / "m")), str(write(folder / "rows.jsonl", reviews(80)))),
        ("--methods", "head-only,full"),
        {"train.batch_size": 4, "train.threads": 1, "train.epochs": 2},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_stopped_at_random_moments_it_ends_with_the_same_table(tmp_path, case, monkeypatch):
    make, more, sets = CASES[case]
    rng, (model, data) = random.Random(0), make(tmp_path)
    straight, out = tmp_path / "straight" / "out", tmp_path / "stopped" / "out"
    for folder in (straight.parent, out.parent):
        folder.mkdir()
    own_cache(monkeypatch, straight.parent)  # what it keeps the other one would find
    started = time.monotonic()
    assert not stopped_after(begun(model, data, straight, *more, sets=sets), 1200, straight, signal.SIGKILL)
    whole, ways, arguments = time.monotonic() - started, [*WAYS], begun(model, data, out, *more, sets=sets)
    own_cache(monkeypatch, out.parent)
    rng.shuffle(ways)
    while ways and stopped_after(arguments, rng.uniform(0.02, 0.1) * whole, out, ways[0], len(ways) % 2 == 0):
        ways.pop(0)
        if (out / "plan.json").is_file():  # else the same command begins it again
            arguments = command("--resume", str(out))
    assert not ways
    assert not stopped_after(arguments, 1200, out, signal.SIGKILL)
    assert table(out) == table(straight)
