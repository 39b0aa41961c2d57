"""F1 of single classes, averaged: the harmonic mean of precision and recall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def macro_f1(guesses: Sequence[str], truths: Sequence[str]) -> float:
    """Mean over the classes in `truths` of each one's F1.

    A guess that is no class of `truths` is a miss for the row's own class and counts against no other.

    Args:
        guesses: one class for each row.
        truths: the right class of each row; at least one row.

    Returns:
        A share in 0..1. Each class counts the same, however many rows it has.
    """
    guessed, true = Counter(guesses), Counter(truths)
    right = Counter(truth for guess, truth in zip(guesses, truths, strict=True) if guess == truth)
    return float(np.mean([2 * right[label] / (guessed[label] + true[label]) for label in sorted(true)]))


def micro_f1(guesses: Sequence[Sequence[str]], truths: Sequence[Sequence[str]]) -> float:
    """F1 over all decisions of all rows together, where a row may have several classes or none.

    Args:
        guesses: the classes of each row; order and repetition do not count.
        truths: the right ones.

    Returns:
        A share in 0..1; 1 where no row has a class and none is guessed.
    """
    pairs = [(set(guess), set(truth)) for guess, truth in zip(guesses, truths, strict=True)]
    right = sum(len(guess & truth) for guess, truth in pairs)
    total = sum(len(guess) + len(truth) for guess, truth in pairs)
    return 2 * right / total if total else 1.0
