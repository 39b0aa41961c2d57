"""Metrics of task heads, on what they say in words: one class, several, numbers, or a class for each word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from microplane.evaluation.correlation import pearson, spearman
from microplane.evaluation.f1 import macro_f1, micro_f1

Scores = dict[str, float]


def score(task: str, said: Sequence[Any], truths: Sequence[Any]) -> Scores:
    """The metrics that belong to a task.

    Args:
        said: of each row, what the head says: a class; a list of classes; values; or a class for each token.
        truths: the same as it should be; None for a token without a label.
    """
    return TASKS[task](said, truths)


def classification(said: Sequence[str], truths: Sequence[str]) -> Scores:
    """Share of rows that are right, and the mean F1 of the classes that occur."""
    right = sum(one == other for one, other in zip(said, truths, strict=True)) / len(truths)
    return {"accuracy": right, "macro_f1": macro_f1(said, truths)}


def multilabel(said: Sequence[list[str]], truths: Sequence[list[str]]) -> Scores:
    """Share of rows of which every class is right, and F1 over all classes of all rows."""
    right = sum(set(one) == set(other) for one, other in zip(said, truths, strict=True)) / len(truths)
    return {"accuracy": right, "micro_f1": micro_f1(said, truths)}


def regression(said: Sequence[list[float]], truths: Sequence[list[float]]) -> Scores:
    """Root of the mean squared error, and how far the two go together (0 where one of them never changes)."""
    guess, truth = np.array(said, float).ravel(), np.array(truths, float).ravel()
    return {
        "rmse": math.sqrt(float(np.mean((guess - truth) ** 2))),
        "pearson": pearson(guess, truth),
        "spearman": spearman(guess, truth),
    }


def tokens(said: Sequence[list[str]], truths: Sequence[list[str | None]]) -> Scores:
    """As classification, over all words that have a label."""
    pairs = [
        (one, other)
        for row, wanted in zip(said, truths, strict=True)
        for one, other in zip(row, wanted, strict=True)
        if other is not None
    ]
    return classification([one for one, _ in pairs], [other for _, other in pairs])


TASKS: dict[str, Callable[[Any, Any], Scores]] = {
    "classification": classification,
    "multilabel": multilabel,
    "regression": regression,
    "tokens": tokens,
}


def text(said: Any, truth: Any, task: str) -> str:
    """One row's answer as one line."""
    if task == "classification":
        return str(said)
    if task == "tokens":
        return " ".join(one for one, other in zip(said, truth, strict=True) if other is not None)
    if task == "regression":
        return ", ".join(f"{value:.3g}" for value in said)
    return ", ".join(said) or "(none)"
