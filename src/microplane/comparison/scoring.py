"""What a row's answer is worth by itself: metrics that are means over rows, so that two methods differ row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from microplane.comparison.statistics import Array
from microplane.errors import ConfigError, nearest
from microplane.evaluation import text_metrics

LEAST_ROWS = 2  # by which it can be told what is chance

Score = Callable[[str, str], float]  # (answer, target)

FIGURES = {  # of an answer in text, by the metric that gives it
    "exact_match": "exact_match",
    "json_valid": "json_valid",
    "json_equal": "json_equal",
    "accuracy": "accuracy",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "chrf": "chrf",
}


@dataclass(frozen=True)
class Metric:
    """How a row's answer is judged.

    Args:
        name: as results call it.
        score: of one row.
        lower: whether less is better.
        share: whether a row's score lies in 0..1.
    """

    name: str
    score: Score
    lower: bool = False
    share: bool = True

    def of(self, answers: Sequence[str], targets: Sequence[str]) -> Array:
        """(rows,) scores."""
        return np.array([self.score(*pair) for pair in zip(answers, targets, strict=True)], np.float64)


def _same(answer: str, target: str) -> float:
    return float(answer == target)


def _same_words(answer: str, target: str) -> float:
    """Of the labels of a row's words, the share that is right."""
    pairs = list(zip(answer.split(" "), target.split(" "), strict=False))
    return sum(one == other for one, other in pairs) / max(len(target.split(" ")), 1)


def _error(answer: str, target: str) -> float:
    """The mean absolute error of a row's numbers."""
    pairs = zip(answer.split(","), target.split(","), strict=True)
    return float(np.mean([abs(float(one) - float(other)) for one, other in pairs]))


_OF_LABELS = {
    "classification": (Metric("accuracy", _same),),
    "multilabel": (Metric("accuracy", _same),),
    "tokens": (Metric("accuracy", _same_words),),
    "regression": (Metric("mae", _error, lower=True, share=False),),
}


def metrics_of(task: str | None, targets: Sequence[str]) -> tuple[Metric, ...]:
    """Those that rows of this kind can be compared by, the usual one first.

    Args:
        task: of a task head; None of answers in text.
        targets: some rows' right answers.
    """
    if task is not None:
        return _OF_LABELS.get(task, ())
    chosen = text_metrics.choose(targets)
    first = "rougeL" if "rouge" in chosen else chosen[0]
    return tuple(_of_text(name) for name in dict.fromkeys([first, *FIGURES]))


def choose(name: str | None, task: str | None, targets: Sequence[str]) -> Metric:
    """The metric of a comparison.

    Raises:
        ConfigError: if rows of this kind have none of that name.
    """
    there = {metric.name: metric for metric in metrics_of(task, targets)}
    if name is None:
        return next(iter(there.values()))
    if name not in there:
        rows = f"rows for {task}" if task else "rows with answers in text"
        raise ConfigError(
            f"--metric {name}: {rows} cannot be compared by it.{nearest(name, there)} Possible: {', '.join(there)} "
            "(metrics that each row has by itself)"
        )
    return there[name]


def _of_text(name: str) -> Metric:
    scale = 100 if name == "chrf" else 1

    def score(answer: str, target: str) -> float:
        return text_metrics.METRICS[FIGURES[name]]([answer], [target])[name] / scale

    return Metric(name, score)
