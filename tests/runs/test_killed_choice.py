"""A run that chooses its method, or its rank, and its rate: stopped at any moments it is the run nothing stopped."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.data.preparing.test_doubts import asked
from tests.labels import write
from tests.runs.test_method_search import strip
from tests.tiny import SHALLOW, save_tiny_folder

KNOBS: dict[str, Any] = {
    "train.threads": 1,
    "model.dtype": "float32",
    "train.batch_size": 2,
    "train.steps": 240,
    "train.eval_every": 60,
    "train.save_every": 10,
    "train.lr": "auto",
    "eval.rows": 4,
}
OPEN: dict[str, dict[str, Any]] = {
    "method": {"method.name": "auto"},
    "method, kept": {"method.name": "auto", "train.lr": None},  # the best trial is the run
    "rank": {"method.name": "dora", "method.rank": "auto"},
}
WAYS: tuple[int, ...] = (*[signal.SIGKILL] * 10, signal.SIGTERM, signal.SIGINT)


def begun(folder: Path, name: str, more: dict[str, Any]) -> list[str]:
    knobs = {knob: value for knob, value in (KNOBS | more).items() if value is not None}
    sets = [part for knob, value in knobs.items() for part in ("--set", f"{knob}={value}")]
    arguments = [str(folder / "model"), str(folder / "rows.jsonl"), "--name", name, "--set", f"runs={folder / 'runs'}"]
    return [sys.executable, "-m", "microplane", "train", "--quiet", *arguments, *sets]


def stopped(arguments: list[str], seconds: float, way: int) -> bool:
    """Whether it was, before it had ended by itself."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(way)
        _, error = process.communicate()
        assert process.returncode in (-way, 128 + way, 3), error.decode()
        return True
    assert process.returncode == 0, error.decode()
    return False


def came_to(run: Path) -> dict[str, Any]:
    """All that a run leaves, but for the clock's figures."""
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "success"
    weights = {path.name: path.read_bytes() for path in (run / "adapter").glob("*.safetensors")}
    figures = {name: result[name] for name in ("lr_search", "metrics", "checks")}
    return figures | {
        "choice": strip(result["choice"]),
        "rate": result["run"]["train"]["lr"],
        "weights": weights,
        "course": (run / "metrics.jsonl").read_bytes(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("what", OPEN)
def test_stopped_at_random_moments_it_chooses_the_same_and_ends_with_the_same_weights(tmp_path, what):
    save_tiny_folder(tmp_path / "model", **SHALLOW)
    write(tmp_path / "rows.jsonl", asked(60))
    started, rng, ways, runs = time.monotonic(), random.Random(0), [*WAYS], tmp_path / "runs"
    assert not stopped(begun(tmp_path, "whole", OPEN[what]), 600, signal.SIGKILL)
    whole, rounds = time.monotonic() - started, 0
    rng.shuffle(ways)
    while ways or rounds == 0:  # as often as the moments suffice for
        shutil.rmtree(runs / "cut", ignore_errors=True)
        arguments = begun(tmp_path, "cut", OPEN[what])
        while stopped(arguments, rng.uniform(0.3, 0.9) * whole if ways else 600, ways[0] if ways else signal.SIGKILL):
            ways.pop(0)
            if (runs / "cut" / "run.yaml").is_file():
                arguments = [sys.executable, "-m", "microplane", "train", "--quiet", "--resume", str(runs / "cut")]
        assert came_to(runs / "cut") == came_to(runs / "whole")
        assert not any(path.name.startswith(".") for path in (runs / "cut").rglob("*"))
        rounds += 1
