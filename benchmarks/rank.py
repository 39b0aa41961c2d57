"""rank = auto against fixed ranks on the demo's task: exact match on held-out commands, three seeds.

    python benchmarks/rank.py [--ranks 1 2 4 8 16 32 auto] [--seeds 0 1 2] [--threads 1] [--set ...]
    python benchmarks/rank.py --ranks auto --set train.epochs=2

The runs of methods.py: the same rows, read once, by LoRA of each rank (alpha twice the rank, so that the scale is the
same) and by LoRA that finds its rank, which may read them twice, as in the second line. Writes
results/rank_<date>.json after each run and keeps what stands there.
"""

from __future__ import annotations

from typing import Any

from methods import arguments, sweep

RANKS = ("1", "2", "4", "8", "16", "32", "auto")


def method_of(rank: str) -> dict[str, Any]:
    if rank == "auto":
        return {"name": "lora-auto"}
    return {"name": "lora", "rank": int(rank), "alpha": 2.0 * int(rank)}


def main() -> None:
    parser = arguments(__doc__, seeds=[0, 1, 2])
    parser.add_argument("--ranks", nargs="+", default=list(RANKS))
    options = parser.parse_args()
    what = f"exact match on {options.rows} held-out home commands, fixed ranks and auto"
    sweep("rank", what, {f"rank {rank}": method_of(rank) for rank in options.ranks}, options, options.rows)


if __name__ == "__main__":
    main()
