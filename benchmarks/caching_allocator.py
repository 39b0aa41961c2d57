"""Training with the caching allocator and without it, in turn: seconds of a token, and the most memory that is held.

    python benchmarks/caching_allocator.py MODEL DATA [--method lora] [--steps 200] [--pairs 3] [--set NAME=VALUE ...]

Each run is a whole `train` in a process of its own. The seconds are those of the steps after the first quarter. Both
come to the same losses, or the script ends with an error. Writes results/caching_allocator_<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import microplane
from common import environment
from microplane import cpu_memory

RESULTS = Path(__file__).parent / "results"


def measure(options: argparse.Namespace) -> dict[str, float]:
    """In this process: one run."""
    if options.side == "without":
        cpu_memory._library = lambda: None
    steps = list[dict[str, Any]]()
    knobs = dict(one.split("=", 1) for one in options.set)
    with tempfile.TemporaryDirectory() as place:
        sets = {"train.steps": options.steps, "train.eval_every": options.steps, "eval.rows": 0, "runs": place} | knobs
        run = microplane.train(options.model, options.data, method=options.method, set=sets, callback=steps.append)
    timed = [step for step in steps if "loss" in step][options.steps // 4 :]
    seconds, tokens = (sum(step[name] for step in timed) for name in ("seconds", "tokens"))
    train, forecast = run.result["train"], run.result["forecast"]
    return {
        "seconds_per_1000_tokens": 1000 * seconds / tokens,
        "peak_bytes": train["peak_memory_bytes"],
        "forecast_bytes": forecast["peak_memory_bytes"],
        "validation_loss": train["validation_loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--side", choices=("with", "without"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    for pair in range(options.pairs):
        for side in ("with", "without") if pair % 2 else ("without", "with"):
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(side, found[side][-1], flush=True)
    if len({one["validation_loss"] for one in (*found["with"], *found["without"])}) > 1:
        sys.exit("the two sides came to different losses")
    ratios = {
        name: [own[name] / other[name] for own, other in zip(found["with"], found["without"], strict=True)]
        for name in ("seconds_per_1000_tokens", "peak_bytes")
    }
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    print(json.dumps(medians))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    asked = {name: getattr(options, name) for name in ("model", "data", "method", "steps", "set")}
    out = RESULTS / f"caching_allocator_{today}.json"
    earlier = json.loads(out.read_text())["runs"] if out.is_file() else []
    run = asked | {"sides": found, "with_by_without": ratios, "medians": medians}
    out.write_text(json.dumps(environment() | {"runs": [*earlier, run]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
