"""`kill -9` at any moment, then `--resume`: the same bytes as a run that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import microplane
from tests.tiny import save_tiny_folder

SETS = ["train.epochs=3", "train.batch_size=4", "train.micro_tokens=64", "train.eval_every=3", "train.save_every=1"]
SETS += [
    "train.threads=1",
    "train.lr=5e-3",
    "eval.rows=4",
    "eval.max_new_tokens=4",
    "method.rank=2",
    "method.dropout=0.1",
]
RESULT = ("metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/method.json")


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "microplane.cli.app", "train", *arguments]


def begin(folder: Path, name: str) -> list[str]:
    sets = [part for knob in [*SETS, f"runs={folder}"] for part in ("--set", knob)]
    return command(folder, str(folder / "model"), str(folder / "rows.jsonl"), "--name", name, *sets)


def result(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULT}


def kill_after(arguments: list[str], seconds: float) -> bool:
    """Start the command, kill it after so long; true if it had not ended by itself."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, error.decode()
    return False


def check(folder: Path, kills: int, seed: int) -> int:
    """Runs one straight, one killed at `kills` random moments; returns how many kills hit a living process."""
    rng = random.Random(seed)
    save_tiny_folder(folder / "model")
    rows = [{"prompt": f"repeat {i} {i * 7 % 13}", "completion": f"{i} {i * 7 % 13}"} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = dict(knob.split("=") for knob in SETS)
    given = folder / "model", folder / "rows.jsonl"
    microplane.train(*given, set={**sets, "name": "first", "runs": folder})  # it measures the untouched model for all
    started = time.monotonic()
    assert not kill_after(begin(folder, "straight"), 300)
    whole = time.monotonic() - started
    wanted, hits, serial = result(folder / "straight"), 0, 0
    while hits < kills:
        serial += 1
        name = f"killed-{serial}"
        while (fresh := not (folder / name / "run.yaml").is_file()) or hits < kills:
            arguments = begin(folder, name) if fresh else command(folder, "--resume", str(folder / name))
            if not kill_after(arguments, rng.uniform(0.5, 1.1) * whole if hits < kills else 300):
                break
            hits += 1
        else:
            microplane.resume(folder / name)
        assert not list((folder / name).rglob("*.tmp"))
        assert result(folder / name) == wanted, f"after {hits} kills, in {name}"
    return hits


def test_a_kill(tmp_path):
    assert check(tmp_path, 1, seed=1) >= 1


@pytest.mark.slow
def test_thirty_kills(tmp_path):
    assert check(tmp_path, 30, seed=2) >= 30
