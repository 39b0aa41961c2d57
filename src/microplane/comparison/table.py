"""The runs of a comparison put side by side: what `comparison.json` says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from microplane.comparison.plan import Plan
from microplane.comparison.scoring import LEAST_ROWS, Metric, choose
from microplane.comparison.search import best_of, edge_of
from microplane.comparison.statistics import Difference, Interval, Scores, interval
from microplane.comparison.trials import Outcome
from microplane.comparison.verdict import Judgement, Words, sentences
from microplane.errors import TrainingError
from microplane.files import json_lines
from microplane.methods import METHODS
from microplane.training.log import read_lines

UNTOUCHED = "untouched model"


@dataclass(frozen=True)
class Answers:
    """What a run answered: a line of answers.jsonl for each row."""

    lines: list[dict[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> Answers:
        return cls(json_lines(folder / "answers.jsonl"))

    def said(self, side: str) -> list[str]:
        """By `after`, `before`, or a predictor without a model."""
        own = side in ("before", "after")
        return [line[side] if own else line["trivial"][side] for line in self.lines]

    @property
    def targets(self) -> list[str]:
        return [line["target"] for line in self.lines]


@dataclass(frozen=True)
class Measured:
    """Scores of everybody on the same rows, of which those that some metric could not judge were dropped."""

    metric: Metric
    answers: dict[str, list[Answers]]  # of each method, by seed
    methods: dict[str, Scores]
    baselines: dict[str, Scores]
    kept: list[int]  # numbers of the rows
    dropped: int


def measured(plan: Plan, finals: Mapping[str, Sequence[Outcome]]) -> Measured:
    """Scores from the answers of the final runs.

    Args:
        finals: those that succeeded, at least one of each method that is named.
    """
    answers = {name: [Answers.of(one.folder) for one in runs] for name, runs in finals.items()}
    return scored(answers, plan.metric, plan.task)


def scored(answers: dict[str, list[Answers]], metric_name: str | None, task: str | None) -> Measured:
    """Scores of all on the same rows.

    Args:
        answers: of each method (or run), by seed.
        metric_name: None for the task's own.
        task: of a task head; None of answers in text.

    Raises:
        TrainingError: if there are too few rows by which all can be judged.
    """
    first, seeds = next(iter(answers.values()))[0], max(answers.values(), key=len)
    metric = choose(metric_name, task, first.targets)

    def matrix(runs: Iterable[Answers], side: str) -> Any:
        return np.array([metric.of(run.said(side), run.targets) for run in runs])

    found = {name: matrix(runs, "after") for name, runs in answers.items()}
    beside = {name: matrix([first], name) for name in first.lines[0]["trivial"]}
    untouched = matrix(seeds, "before")  # a new head is another with each seed
    known = np.isfinite(np.concatenate([*found.values(), *beside.values(), untouched])).all(0)
    if known.sum() < LEAST_ROWS:
        raise TrainingError(f"of {len(known):,} test rows {known.sum():,} can be judged for all: too few to compare by")
    methods = with_seeds_of_others(
        {name: Scores(values[:, known], share=metric.share) for name, values in found.items()}
    )
    baselines = {name: Scores(values[:, known], False, metric.share) for name, values in beside.items()}
    alike = task is None
    own = untouched[:1] if alike else untouched
    baselines[UNTOUCHED] = Scores(own[:, known], not alike, metric.share)
    return Measured(metric, answers, methods, baselines, np.flatnonzero(known).tolist(), int((~known).sum()))


def with_seeds_of_others(methods: dict[str, Scores]) -> dict[str, Scores]:
    """A method of which one seed is left, as the others failed, is judged by what seeds differ by elsewhere."""
    several = tuple(scores for scores in methods.values() if len(scores.values) > 1)
    alone = {name: replace(scores, others=several) for name, scores in methods.items() if len(scores.values) == 1}
    return methods | alone


def judged(found: Measured, finals: Mapping[str, Sequence[Outcome]]) -> Judgement:
    costs = {name: float(runs[0].result["method"]["trainable_parameters"]) for name, runs in finals.items()}
    return Judgement(found.methods, found.baselines, costs, found.metric.lower)


def interval_of(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def difference_of(judgement: Judgement, one: str, other: str | None) -> dict[str, Any] | None:
    if other is None or one == other:
        return None
    claim = judgement.claim(one, other)
    found: Difference = claim.difference
    more = {"to": other, "p": found.p, "p_adjusted": claim.p, "identical": found.identical, "told_apart": claim.holds}
    return interval_of(found) | more


def reference_of(plan: Plan, finals: Mapping[str, Sequence[Outcome]]) -> str:
    """The method that differences are to: the plan's, or the first where that could not be trained."""
    return plan.reference if plan.reference in finals else next(iter(finals))


def method_rows(
    plan: Plan, found: Measured, judgement: Judgement, finals: Mapping[str, Sequence[Outcome]]
) -> list[dict[str, Any]]:
    """A row for each method that has a result, the best first."""
    reference = reference_of(plan, finals)
    rows = []
    for name in judgement.ranking:
        runs = finals[name]
        rows.append(
            {
                "method": name,
                "lr": runs[0].trial.lr,
                "default_lr": plan.defaults[name],
                "score": interval_of(interval(found.methods[name])),
                "by_seed": found.methods[name].of_seeds,
                "seeds": [run.trial.seed for run in runs],
                "to_reference": difference_of(judgement, name, reference),
                "to_baseline": difference_of(judgement, name, judgement.baseline),
                "forgetting": _forgetting(runs),
                **_costs(runs),
                **_facts(name, runs),
            }
        )
    return rows


def _forgetting(runs: Sequence[Outcome]) -> dict[str, Any] | None:
    """The loss on general text before and after, the mean of the seeds; None where it was not measured."""
    found = [run.result["general"] for run in runs if run.result.get("general")]
    if not found:
        return None
    means = {name: fmean(one[name] for one in found) for name in ("before", "after", "difference")}
    return means | {"by_seed": [one["difference"] for one in found]}


def _costs(runs: Sequence[Outcome]) -> dict[str, Any]:
    """Means over the seeds, of memory the most."""
    train = [run.result["train"] for run in runs]
    rates = {
        name: median(rates) if (rates := [one[name] for one in train if one.get(name)]) else None
        for name in ("tokens_per_second", "trained_tokens_per_second")
    }
    losses = {name: fmean(one[name] for one in train) for name in ("train_loss", "validation_loss")}
    return {
        "seconds": fmean(one["seconds"] for one in train),
        **rates,
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in train),
        **losses,
        "gap": losses["validation_loss"] - losses["train_loss"],
        "steps": train[0]["steps"],
        "tokens": train[0]["tokens"],
    }


def _facts(name: str, runs: Sequence[Outcome]) -> dict[str, Any]:
    """What it is, how fast the tuned model is, and where it can be used."""
    own, kind = runs[0].result["method"], METHODS[name]
    merges = bool(own["facts"]["mergeable"])
    return {
        "trainable_parameters": own["trainable_parameters"],
        "adapter_bytes": own["adapter_bytes"],
        "speed": next((run.result["speed"] for run in runs if run.result.get("speed")), None),
        "ways": own.get("ways") or [],
        "merges": merges,
        "peft": kind.peft_type,
        "whole_model": kind.whole_model,
        "quantize": kind.quantize,
    }


def baseline_rows(found: Measured) -> list[dict[str, Any]]:
    """A row for each baseline, the best first."""
    sign = 1 if found.metric.lower else -1
    order = sorted(found.baselines, key=lambda name: sign * found.baselines[name].mean)
    return [{"name": name, "score": interval_of(interval(found.baselines[name]))} for name in order]


def searched(plan: Plan, short: Mapping[str, Sequence[Outcome]], half: Mapping[str, Sequence[Outcome]]) -> Any:
    """Of each method every rate that was tried, what came of it, and whether the one taken lies on an edge."""
    told = {}
    for name, runs in short.items():
        losses = {run.trial.lr: run.validation_loss for run in runs}
        later = {run.trial.lr: run.validation_loss for run in half.get(name, ())}
        taken = best_of(later) if later else None
        told[name] = {
            "points": [_point(run) for run in (*runs, *half.get(name, ()))],
            "taken": taken,
            "edge": edge_of(losses, taken) if taken is not None else None,
            "steps": sum(run.trial.steps for run in (*runs, *half.get(name, ()))),
            "trials": len(runs) + len(half.get(name, ())),
        }
    return told


def _point(run: Outcome) -> dict[str, Any]:
    loss = run.validation_loss
    told = {"lr": run.trial.lr, "stage": run.trial.stage, "steps": run.trial.steps}
    return told | {"validation_loss": loss if math.isfinite(loss) else None, "reason": run.reason}


def curves(finals: Mapping[str, Sequence[Outcome]]) -> dict[str, list[list[float]]]:
    """Validation loss by read tokens, of each method's first seed."""
    return {name: curve(read_lines(runs[0].folder / "metrics.jsonl"), "tokens") for name, runs in finals.items()}


def curve(lines: Iterable[Mapping[str, Any]], counted: str) -> list[list[float]]:
    """Validation loss by what was read until then.

    Args:
        lines: of metrics.jsonl.
        counted: `tokens`, or `trained_tokens` for those of them that are predicted.
    """
    read, points = 0, []
    for line in lines:
        if "validation_loss" in line:
            points.append([read, line["validation_loss"]])
        else:
            read += line.get(counted, 0)
    return points


def row_lines(found: Measured, most: int) -> list[dict[str, Any]]:
    """Rows with everybody's answer, of the first seed: first those on which the methods differ most."""
    answers = {name: runs[0] for name, runs in found.answers.items()}
    first = next(iter(answers.values()))
    means = {name: scores.values.mean(0) for name, scores in found.methods.items()}
    spread = np.ptp(np.stack([*means.values()]), axis=0)
    order = np.argsort(-spread, kind="stable")[:most]
    return [_row(found, answers, first.lines[found.kept[at]], int(at)) for at in order]


def _row(found: Measured, answers: Mapping[str, Answers], line: Mapping[str, Any], at: int) -> dict[str, Any]:
    return {
        "where": line["where"],
        "prompt": line["prompt"],
        "target": line["target"],
        UNTOUCHED: line["before"],
        "trivial": line["trivial"],
        "answers": {name: one.lines[found.kept[at]]["after"] for name, one in answers.items()},
        "scores": {name: float(found.methods[name].values[:, at].mean()) for name in answers},
    }


def told(found: Measured, judgement: Judgement) -> dict[str, Any]:
    """The answer in words, and what could be seen at all."""
    words = Words(found.metric.share)
    return {
        "sentences": sentences(judgement, words),
        "leaders": judgement.leaders,
        "advised": judgement.advised,
        "best_baseline": judgement.baseline,
        "beats_baseline": judgement.beats_baseline,
        "visible": judgement.visible,
        "claims": len(judgement.claims),
    }
