"""What one process of a sharded run holds: full fine-tuning of SmolLM2 on one process, and on two with train.shard.

    python benchmarks/shard_memory.py           writes results/shard_memory_<date>.json

Steps of 8 rows of 512 tokens. The peak is the most that a process has ever held in memory (VmHWM), from its first
second to its last: opening the model, measuring it and writing the files are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from common import environment

HERE = Path(__file__).parent
STEPS, ROWS, WORDS = 2, 20, 600  # the averages are there in the second step
KNOBS = {
    "data.max_length": 512,
    "data.validation_rows": 2,
    "eval.rows": 0,
    "model.device": "cpu",
    "train.eval_every": STEPS,
    "train.steps": STEPS,
    "train.threads": 1,
}


def rows() -> str:
    """Plain text, of words drawn at random, of at least 512 tokens a row."""
    draw = random.Random(0)
    letters = [chr(ord("a") + number) for number in range(26)]
    words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(500)]
    return "".join(json.dumps({"text": " ".join(draw.choices(words, k=WORDS))}) + "\n" for _ in range(ROWS))


def peaks(folder: Path, name: str, processes: int, knobs: dict[str, Any]) -> dict[str, Any]:
    """Of a run: the peak of each of its processes in bytes, and its losses."""
    sets = [f"--set={knob}={value}" for knob, value in {**KNOBS, **knobs}.items()]
    command = [sys.executable, "-m", "microplane", "train", "smollm2", "rows.jsonl", "--method=full", f"--name={name}"]
    command += [f"--processes={processes}"] if processes > 1 else []
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*command, *sets], cwd=folder, env=env, stdout=subprocess.DEVNULL)
    most: dict[int, int] = {}
    while running.poll() is None:
        for process in psutil.Process(running.pid).children() if processes > 1 else [psutil.Process(running.pid)]:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue
            found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            most |= {process.pid: int(found[0]) * 1024} if found else {}
        time.sleep(0.05)
    assert running.returncode == 0, command
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    return {"processes": processes, "peak_memory_bytes": list(most.values()), "losses": losses}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON's file")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "rows.jsonl").write_text(rows())
        one = peaks(folder, "one", 1, {})
        two = peaks(folder, "two", 2, {"train.shard": True})
    about = environment()
    share = max(two["peak_memory_bytes"]) / one["peak_memory_bytes"][0]
    off = max(abs(a - b) / a for a, b in zip(one["losses"], two["losses"], strict=True))
    whole = {"environment": about, "rows": ROWS, "knobs": KNOBS, "runs": [one, two], "share": share, "losses_off": off}
    out = asked.out or HERE / "results" / f"shard_memory_{about['date'][:10]}.json"
    out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(f"{one['peak_memory_bytes']} and {two['peak_memory_bytes']}: {share:.3f}; losses off by {off:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
