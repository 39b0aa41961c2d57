"""Metrics of task heads, on what they say in words: one class, several, numbers, or a class for each word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
    from sklearn.metrics import f1_score

    right = sum(one == other for one, other in zip(said, truths, strict=True)) / len(truths)
    f1 = f1_score(truths, said, labels=sorted(set(truths)), average="macro", zero_division=0)
    return {"accuracy": right, "macro_f1": float(f1)}


def multilabel(said: Sequence[list[str]], truths: Sequence[list[str]]) -> Scores:
    """Share of rows of which every class is right, and F1 over all classes of all rows."""
    right = sum(set(one) == set(other) for one, other in zip(said, truths, strict=True)) / len(truths)
    both = sum(len(set(one) & set(other)) for one, other in zip(said, truths, strict=True))
    total = sum(len(row) for row in said) + sum(len(row) for row in truths)
    return {"accuracy": right, "micro_f1": 2 * both / total if total else 1.0}


def regression(said: Sequence[list[float]], truths: Sequence[list[float]]) -> Scores:
    """Root of the mean squared error, and how far the two go together (0 where one of them never changes)."""
    from scipy.stats import spearmanr

    guess, truth = np.array(said, float).ravel(), np.array(truths, float).ravel()
    changes = len(truth) > 1 and guess.std() > 0 and truth.std() > 0
    return {
        "rmse": math.sqrt(float(np.mean((guess - truth) ** 2))),
        "pearson": float(np.corrcoef(guess, truth)[0, 1]) if changes else 0.0,
        "spearman": float(spearmanr(guess, truth).statistic) if changes else 0.0,
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
