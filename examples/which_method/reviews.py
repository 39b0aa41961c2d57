"""Write film reviews of `benchmarks/movies.py` as rows with labels: `reviews.py FOLDER [ROWS]`.

FOLDER/train.jsonl gets ROWS reviews (800), FOLDER/test.jsonl 1,260 of films that are in no training row.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from movies import snippets, split


def main(folder: str, count: str = "800") -> None:
    sides = split(snippets())
    chosen = {"train": random.Random(0).sample(sides["train"], int(count)), "test": sides["test"]}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in chosen.items():
        lines = (json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows)
        (Path(folder) / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
