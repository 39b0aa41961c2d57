"""Runs of two processes, killed at any moment, go on with one, two or three: the same rows, the same losses."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.runs.test_processes import command, environment, losses, place, result_of, run  # noqa: F401 - a fixture

STEPS = {"train.steps": 72, "train.eval_every": 18, "train.save_every": 2}
SHARDED = {"method.name": "full", "train.shard": True}


def go_on(name: str, count: int) -> list[str]:
    return [sys.executable, "-m", "microplane", "train", "--resume", f"runs/{name}", f"--processes={count}"]


def killed(place: Path, given: list[str], metrics: Path, draw: random.Random) -> bool:  # noqa: F811
    """Start a command and kill one of its processes, or all, at some moment; false if it was done before."""
    written = metrics.stat().st_size if metrics.exists() else 0
    launcher = subprocess.Popen(given, cwd=place, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    end = time.monotonic() + 120
    while launcher.poll() is None and time.monotonic() < end:  # until it has begun to write, and a little longer
        if metrics.exists() and metrics.stat().st_size != written:
            time.sleep(draw.uniform(0, 0.5))
            break
        time.sleep(0.05)
    with suppress(psutil.NoSuchProcess):
        ranks = psutil.Process(launcher.pid).children() or [psutil.Process(launcher.pid)]
        for process in ranks if draw.random() < 0.5 else [draw.choice(ranks)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    started = time.monotonic()
    launcher.communicate(timeout=90)
    assert time.monotonic() - started < 60
    return launcher.returncode != 0


def whole_course(place: Path, name: str) -> list[int]:  # noqa: F811
    lines = [json.loads(line) for line in (place / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [{}, SHARDED], ids=["lora", "sharded"])
@pytest.mark.parametrize("counts", [(2,), (1, 2, 3)], ids=["as many", "others"])
def test_killed_and_gone_on_with(place, knobs, counts):  # noqa: F811
    """Ten kills over a run, or as many as came before it was done; as many processes as before give the same bits."""
    draw, whole = random.Random(5), "whole-sharded" if knobs else "whole"
    if not (place / "runs" / whole).exists():
        run(place, "model", "rows.jsonl", f"--name={whole}", "--processes=2", **STEPS, **knobs)
    name = f"{whole}-{len(counts)}"
    metrics, kills = place / "runs" / name / "metrics.jsonl", 0
    given = command("model", "rows.jsonl", f"--name={name}", "--processes=2", **STEPS, **knobs)
    while kills < 10:
        kills += killed(place, given, metrics, draw)
        if metrics.exists():
            given = go_on(name, draw.choice(counts))
        if (place / "runs" / name / "result.json").exists() and result_of(place, name)["status"] == "success":
            break
    subprocess.run(go_on(name, counts[-1]), cwd=place, env=environment(), check=True, timeout=300, capture_output=True)
    assert kills > 4
    assert whole_course(place, name) == list(range(1, 73))
    if counts == (2,):
        assert losses(place, name) == losses(place, whole)
    else:
        assert losses(place, name) == pytest.approx(losses(place, whole), rel=1e-4)
