"""Write a few of the film reviews of `benchmarks/movies.py` as rows with labels: `reviews.py FILE [ROWS]`."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from movies import snippets


def main(file: str, count: str = "300") -> None:
    rows = snippets()
    random.Random(0).shuffle(rows)
    lines = [json.dumps({"text": row["text"], "label": row["label"]}) for row in rows[: int(count)]]
    Path(file).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
