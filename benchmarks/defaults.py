"""Do the defaults hold on other data? Eight real tasks, each method as it comes, several seeds, beside what is trivial.

    python benchmarks/defaults.py [--tasks foods mails ...] [--methods lora full ...] [--seeds 0 1 2] [--rates]
                                  [--at 1e-4 ...] [--ten-times] [--passes 1 3 ...] [--rows 300] [--threads 1]

An encoder (MiniLM) on reviews of films and of food, mails and definitions; a decoder (SmolLM2) on home commands in
three languages, and on English to French. A run gets its rows, at most 256 tokens of each, and its method's name; all
else is a default. With `--rates` a third of each method's rate and three times that are also tried, seed 0: is
another setting better? With `--at` these rates, too. With `--ten-times` also ten times that, with
train.on_divergence=lower_lr: is the run said to diverge, and where does it end? With `--passes` the default rate with
so many passes, for each seed, and nothing else; with `--rows` over the first rows alone.
Beside the methods: the majority and TF-IDF (a run measures them itself) and, of labels, a logistic regression on the
vectors of the untouched model, its penalty chosen on a fifth of the training rows. A ninth task, films-mpnet, is that
of films with a larger encoder, and runs if it is asked for. Writes results/defaults_<date>.json after each run and
keeps what is there already.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from common import environment
from debian_pairs import fetch, held_out, read_pairs
from labelled_sets import SETS, Sides, labelled_set
from microplane.cli.demo import demo_knobs, recipe
from microplane.cli.terminal import Terminal, make_console
from microplane.config.build import assemble
from microplane.inference.pipeline import load
from microplane.inference.predict import batches
from microplane.models.contract import in_eval_mode
from microplane.models.heads import features
from microplane.models.task_head import pooled
from microplane.runs.train import train
from movies import snippets, split
from mpnet import NAME as MPNET
from mpnet import fetch as fetch_mpnet

HERE = Path(__file__).parent
MOST_TOKENS = 256  # of a row
RATES = (1 / 3, 3.0)  # times the default
TOO_HIGH = 10.0  # times the default
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of the logistic regression


@dataclass(frozen=True)
class Task:
    model: str
    metric: str
    build: Callable[[Path], None]  # writes train.jsonl and test.jsonl into a folder
    methods: tuple[str, ...]
    knobs: dict[str, Any] = field(default_factory=dict)


def films(folder: Path) -> None:
    sides = split(snippets())
    write_rows(folder, {"train": sides["train"] + sides["validation"], "test": sides["test"]})


def set_of(name: str) -> Callable[[Path], None]:
    return lambda folder: write_rows(folder, labelled_set(name))


def commands(language: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        recipe().build(folder, lang=language, train_rows=1200, test_rows=300)

    return build


def translations(folder: Path) -> None:
    """Short descriptions of Debian's packages; those of a source package are on one side."""
    sides: Sides = {"train": [], "test": []}
    for pair in read_pairs(fetch()):
        if len(pair.english) < 80:
            row = {"instruction": "Translate to French.", "input": pair.english, "output": pair.french}
            sides["test" if held_out(pair.source_package, 0.05) else "train"].append(row)
    for rows in sides.values():
        random.Random(0).shuffle(rows)
    write_rows(folder, {"train": sides["train"][:1500], "test": sides["test"][:300]})


def write_rows(folder: Path, sides: Sides) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for side, rows in sides.items():
        kept = [{name: value for name, value in row.items() if name != "film"} for row in rows]
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


LABELS = ("head-only", "lora", "full")
ANSWERS = ("lora", "full")
DEMO = {name: value for name, value in demo_knobs(Path()).items() if name.startswith(("data.system", "eval."))}
TASKS: dict[str, Task] = {
    "films": Task("minilm", "accuracy", films, LABELS),
    **{name: Task("minilm", "accuracy", set_of(name), LABELS) for name in SETS},
    **{f"commands-{of}": Task("smollm2", "exact_match", commands(of), ANSWERS, DEMO) for of in ("en", "fr", "vi")},
    "translation": Task("smollm2", "chrf", translations, ANSWERS, {"eval.rows": 300, "eval.metrics": ["chrf"]}),
}
EIGHT = list(TASKS)
TASKS["films-mpnet"] = Task(MPNET, "accuracy", films, LABELS)


def found(model: str) -> str:
    """Where a task's model is."""
    return str(fetch_mpnet()) if model == MPNET else model


def one(
    task: str,
    method: str,
    seed: int,
    rate: float | None,
    folder: Path,
    threads: int | None,
    lowers: bool = False,
    passes: float | None = None,
) -> dict[str, Any]:
    """A run of its own: what it scored on the rows of the test."""
    what = TASKS[task]
    given: dict[str, Any] = {
        "runs": str(folder / "runs"),
        "model.name": found(what.model),
        "method.name": method,
        "data.train": str(folder / task),
        "data.max_length": MOST_TOKENS,
        "train.seed": seed,
        "train.threads": threads,
        **what.knobs,
    }
    given |= {} if rate is None else {"train.lr": rate}
    given |= {"train.on_divergence": "lower_lr"} if lowers else {}
    given |= {} if passes is None else {"train.epochs": passes}
    result = train(knobs=assemble(given=given, assignments=[]), watch=Terminal(make_console())).result
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "rate": result["run"]["train"]["lr"],
        "default": rate is None and passes is None,
        "passes": passes,
        "rows": result["data"]["train_rows"],
        "score": result["metrics"]["after"][what.metric],
        "measured_on": result["metrics"]["split"],
        "before": result["metrics"]["before"].get(what.metric),
        "trivial": {name: scores[what.metric] for name, scores in result["metrics"].get("trivial", {}).items()},
        "validation_loss": result["train"]["validation_loss"],
        "train": {name: result["train"][name] for name in ("steps", "best_step", "seconds", "decisions")},
        "retreats": [(event["from_step"], event["step"], event["lr_factor"]) for event in result["train"]["retreats"]],
        "verdict": (result["train"]["verdict"] or {}).get("kind"),
        "failed_checks": [check["name"] for check in result["checks"] if not check["passed"]],
    }


def on_vectors(task: str, folder: Path) -> float:
    """Accuracy of a logistic regression on the untouched encoder's pooled vectors."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    rows = {side: [json.loads(line) for line in (folder / task / f"{side}.jsonl").open()] for side in ("train", "test")}
    vectors = {
        side: first_tokens(found(TASKS[task].model), [row["text"] for row in texts]) for side, texts in rows.items()
    }
    labels = {side: np.array([row["label"] for row in texts]) for side, texts in rows.items()}
    cut = len(labels["train"]) * 4 // 5

    def fitted(penalty: float, rows: slice) -> LogisticRegression:
        return LogisticRegression(C=penalty, max_iter=2000).fit(vectors["train"][rows], labels["train"][rows])

    rest = slice(cut, None)
    best = max(PENALTIES, key=lambda c: fitted(c, slice(cut)).score(vectors["train"][rest], labels["train"][rest]))
    return float(fitted(best, slice(None)).score(vectors["test"], labels["test"]))


def first_tokens(name: str, texts: Sequence[str]) -> Any:
    """The mean of the states of a text's tokens, as many as a run reads: (texts, model width)."""
    import numpy as np

    loaded = load(name)
    vectors = np.empty((len(texts), loaded.model.config.hidden_size), np.float32)
    with in_eval_mode(loaded.model):
        for places, rows in batches([loaded.tokenizer.encode_pair(text, "", MOST_TOKENS) for text in texts]):
            vectors[places] = pooled(features(loaded.model, rows, "mean"), rows, "mean").detach().float().numpy()
    return vectors


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of the table for each task and method: its default over the seeds, and its best rate."""
    rows = []
    for task, method in dict.fromkeys((run["task"], run["method"]) for run in runs):
        ours = [run for run in runs if (run["task"], run["method"]) == (task, method)]
        defaults = [run["score"] for run in ours if run["default"]]
        first = [run for run in ours if run["seed"] == min(one["seed"] for one in ours) and not run.get("ten_times")]
        chosen = min(first, key=lambda run: run["validation_loss"])
        rows.append(
            {
                "task": task,
                "method": method,
                "mean": statistics.mean(defaults) if defaults else None,
                "least": min(defaults, default=None),
                "most": max(defaults, default=None),
                "seeds": len(defaults),
                "trivial": next((run["trivial"] for run in ours if run["trivial"]), {}),
                "best_rate": {"by": "validation loss, one seed", "rate": chosen["rate"], "score": chosen["score"]},
                "rates": {f"{run['rate']:.3g}": run["score"] for run in first},
                "ten_times": next(
                    (
                        {name: run[name] for name in ("rate", "score", "retreats", "verdict")}
                        for run in ours
                        if run.get("ten_times")
                    ),
                    None,
                ),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=EIGHT, choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", help="those that fit the task otherwise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", action="store_true", help="also a third and three times the default rate, seed 0")
    parser.add_argument("--at", type=float, nargs="+", default=[], help="also these rates, seed 0")
    parser.add_argument("--threads", type=int, help="of the processor; one where other work shares it")
    parser.add_argument("--ten-times", action="store_true", help="also ten times the default rate, seed 0")
    parser.add_argument("--passes", type=float, nargs="+", help="nothing but the default rate with so many passes")
    parser.add_argument("--rows", type=int, help="with --passes: of the first so many rows")
    options = parser.parse_args()
    about = environment()
    path = HERE / "results" / f"defaults_{about['date'][:10]}.json"
    kept = json.loads(path.read_text()) if path.exists() else {"runs": [], "vectors": {}}
    kept.setdefault("passes", [])
    with tempfile.TemporaryDirectory() as name:
        for task in options.tasks:
            folder = Path(name)
            TASKS[task].build(folder / task)
            if options.passes:
                for run in by_passes(task, options, folder):
                    kept["passes"].append(run)
                    write(path, about, kept)
                continue
            if TASKS[task].methods == LABELS and task in EIGHT and task not in kept["vectors"]:
                kept["vectors"][task] = on_vectors(task, folder)
                write(path, about, kept)
            for method in options.methods or TASKS[task].methods:
                for run in several(task, method, options, folder, kept["runs"]):
                    kept["runs"].append(run)
                    write(path, about, kept)


def several(task: str, method: str, options: argparse.Namespace, folder: Path, known: Sequence[dict[str, Any]]) -> Any:
    """The runs that are not there yet, one after the other."""
    done = {(run["task"], run["method"], run["seed"], run["rate"]) for run in known}
    defaults = [run for run in known if (run["task"], run["method"]) == (task, method) and run["default"]]
    for seed in options.seeds:
        if seed not in [run["seed"] for run in defaults]:
            run = one(task, method, seed, None, folder, options.threads)
            defaults.append(run)
            yield run
    factors = [*(RATES if options.rates else ()), *([TOO_HIGH] if options.ten_times else ())]
    rates = {float(f"{defaults[0]['rate'] * factor:.3g}"): factor for factor in factors}
    for rate in [*options.at, *rates]:
        if (task, method, options.seeds[0], rate) not in done:
            lowers = rates.get(rate) == TOO_HIGH
            run = one(task, method, options.seeds[0], rate, folder, options.threads, lowers)
            yield run | ({"ten_times": True} if lowers else {})


def by_passes(task: str, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A run for each method, number of passes and seed."""
    file = folder / task / "train.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[: options.rows]), encoding="utf-8")
    for method, seed, passes in product(options.methods or TASKS[task].methods, options.seeds, options.passes):
        yield one(task, method, seed, None, folder, options.threads, passes=passes)


def write(path: Path, about: dict[str, Any], kept: dict[str, Any]) -> None:
    result = {
        "what": "scores of the defaults on the test rows of eight tasks",
        **about,
        "options": {"max_length": MOST_TOKENS, "rates": RATES},
        "table": summary(kept["runs"]),
        "vectors": kept["vectors"],
        "passes": kept["passes"],
        "runs": kept["runs"],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=str) + "\n")
    print(json.dumps(result["table"][-1:]), flush=True)


if __name__ == "__main__":
    main()
