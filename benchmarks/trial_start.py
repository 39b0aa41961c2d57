"""What a comparison costs beside its trials, and how long a trial needs until it trains.

A whole `microplane compare`, whose trials are watched from outside: seconds of the processor and of the clock from the
beginning of a trial's process until its validation before the first step is written. With `--alone` each trial imports
for itself, as it does where there is no fork server. The clock says something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

import microplane
from common import environment
from microplane.comparison.fork_server import ForkServer

LOOKS = 0.01  # seconds between two


def started(folder: Path, ended: threading.Event, found: dict[str, dict[str, float]]) -> None:
    """Note of each trial what its process had taken when it began to train."""
    while not ended.wait(LOOKS):
        for place in folder.glob("trials/*"):
            if place.name in found or not (place / "metrics.jsonl").is_file():
                continue
            with suppress(OSError, ValueError, IndexError, psutil.Error):
                process = psutil.Process(int((place / ".running").read_text().split()[1]))
                took = process.cpu_times()
                if (place / "metrics.jsonl").stat().st_size:
                    clock = time.time() - process.create_time()
                    found[place.name] = {"processor": took.user + took.system, "clock": clock}


def own_seconds(result: dict[str, Any]) -> float:
    """Of a trial: those of its training and of what it measured."""
    return result["train"]["seconds"] + result.get("measuring_seconds", 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--methods", default="lora,full,ia3")
    parser.add_argument("--steps", type=int, required=True, help="of the whole comparison")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="the comparison's folder")
    parser.add_argument("--alone", action="store_true", help="without the fork server")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.alone:
        ForkServer.begin = lambda self, command, log: None  # type: ignore[method-assign]
    knobs = dict(one.split("=", 1) for one in asked.set)
    found: dict[str, dict[str, float]] = {}
    ended, told = threading.Event(), environment()
    watching = threading.Thread(target=started, args=(asked.out, ended, found))
    watching.start()
    began, processor = time.time(), os.times()
    try:
        microplane.compare(asked.model, asked.data, methods=asked.methods, steps=asked.steps, set=knobs, out=asked.out)
    finally:
        ended.set()
        watching.join()
    whole = time.time() - began
    results = [json.loads(path.read_text()) for path in asked.out.glob("trials/*/result.json")]
    commands, own = sum(one["seconds"] for one in results), sum(map(own_seconds, results))
    now = os.times()
    figures = {
        "fork_server": not asked.alone,
        "trials": len(results),
        "seconds": whole,
        "of_trials": commands,
        "of_training_and_measuring": own,
        "ratio_to_trials": whole / commands,
        "ratio_to_training_and_measuring": whole / own,
        "own_processor_seconds": now.user + now.system - processor.user - processor.system,
        "start": {
            kind: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for kind in ("processor", "clock")
            if (values := [one[kind] for one in found.values()])
        },
        "starts": found,
    }
    print(json.dumps(figures, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(told | figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
