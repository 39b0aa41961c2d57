"""Quality on the demo's task with 5,000 rows: exact match on 300 held-out commands, several seeds.

    python benchmarks/home_commands.py [--rows 5000] [--seeds 0 1 2] [--set train.lr=1e-3 ...]

Writes results/home_commands_<date>.json after each seed, and keeps the seeds that are there already, so that the
seeds can be run one by one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import environment
from microplane.cli.demo import demo_knobs, recipe
from microplane.cli.terminal import Terminal, make_console
from microplane.config.build import assemble
from microplane.runs.train import train

HERE = Path(__file__).parent


def one(folder: Path, seed: int, assignments: list[str]) -> dict[str, Any]:
    given = demo_knobs(folder / "data") | {"runs": str(folder / "runs"), "name": f"seed-{seed}", "train.seed": seed}
    result = train(knobs=assemble(given=given, assignments=assignments), watch=Terminal(make_console())).result
    return summary(seed, result)


def summary(seed: int, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": seed,
        "threads": result["environment"]["threads"],
        "before": result["metrics"]["before"],
        "after": result["metrics"]["after"],
        "train": result["train"],
        "checks": result["checks"],
        "knobs": {name: result["run"][name] for name in ("method", "train")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    about = environment()
    path = HERE / "results" / f"home_commands_{about['date'][:10]}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = recipe().build(folder / "data", train_rows=options.rows, test_rows=300)
        for seed in options.seeds:
            runs = [run for run in runs if run["seed"] != seed] + [one(folder, seed, options.set)]
            write(path, about, data, options, runs)


def write(
    path: Path, about: dict[str, Any], data: dict[str, Any], options: argparse.Namespace, runs: list[dict[str, Any]]
) -> None:
    matches = [run["after"]["exact_match"] for run in runs]
    result = {
        "what": "exact match on 300 held-out home commands after LoRA",
        **about,
        "options": {"rows": options.rows, "set": options.set},
        "data": {name: value for name, value in data.items() if name != "files"},
        "exact_match": {"mean": statistics.mean(matches), "least": min(matches), "most": max(matches)},
        "runs": sorted(runs, key=lambda run: run["seed"]),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=str) + "\n")
    print(json.dumps(result["exact_match"]), flush=True)


if __name__ == "__main__":
    main()
