"""rank = auto against fixed ranks on the demo's task: exact match on held-out commands, three seeds.

    python benchmarks/rank.py [--ranks 1 2 4 8 16 32 auto] [--seeds 0 1 2] [--threads 1] [--set ...]

The runs of methods.py: the same rows, read once, by LoRA of each rank (alpha twice the rank, so that the scale is the
same) and by LoRA that finds its rank. Writes results/rank_<date>.json after each run and keeps what stands there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common import environment
from methods import commands, one, write
from microplane.config import parse_value

HERE = Path(__file__).parent
RANKS = ("1", "2", "4", "8", "16", "32", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", nargs="+", default=list(RANKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=300, help="held-out commands that are answered")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    changes = {name: parse_value(text) for name, _, text in (item.partition("=") for item in options.set)}
    threads = {"train.threads": options.threads} if options.threads else {}
    about = environment()
    path = HERE / "results" / f"rank_{about['date'][:10]}.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = commands(folder / "data")
        fields = {"what": f"exact match on {options.rows} held-out home commands, fixed ranks and auto", "data": data}
        for seed in options.seeds:
            for rank in options.ranks:
                fixed = rank != "auto"
                method = (
                    {"name": "lora", "rank": int(rank), "alpha": 2.0 * int(rank)} if fixed else {"name": "lora-auto"}
                )
                run = one(f"rank {rank}", method, seed, folder, changes | threads, options.rows)
                run["changes"] = changes
                print(json.dumps({"rank": rank, "seed": seed, "after": run["after"]}), flush=True)
                write(path, about, fields, run)


if __name__ == "__main__":
    main()
