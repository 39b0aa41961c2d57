"""Metrics of task heads, on what they say in words: one class, several, numbers, or a class for each word."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np

from microplane.evaluation.correlation import pearson, spearman
from microplane.evaluation.f1 import macro_f1, micro_f1
from microplane.evaluation.spans import Span, are_span_tags, spans
from microplane.objectives.base import ByClass, ClassScores

Scores = dict[str, float]

_SHARES: tuple[Literal["f1", "precision", "recall"], ...] = ("f1", "precision", "recall")
SHARES = ("accuracy", "macro_f1", "micro_f1", *(f"entity_{name}" for name in _SHARES))  # figures in 0..1
MATRIX = 50  # classes up to which a confusion matrix can be read


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
    """As classification, over all words that have a label; first F1 of whole entities, where the tags are of that kind
    (an entity counts where kind, first and last word are right, as in conlleval)."""
    guesses, wanted = _labelled(said, truths)
    scores = classification(list(chain(*guesses)), list(chain(*wanted)))
    if are_span_tags({*chain(*guesses), *chain(*wanted)}):
        guessed, true = _located(guesses), _located(wanted)
        whole = _f1(len(guessed), len(true), len(guessed & true))
        entities = {f"entity_{name}": whole[name] for name in _SHARES}
        return entities | scores
    return scores


def by_class(task: str, said: Sequence[Any], truths: Sequence[Any], classes: Sequence[str]) -> ByClass:
    """Precision, recall and F1 of each class, how often which is taken for which, and the same of entities by kind;
    nothing of numbers.

    Args:
        said, truths: as of `score`.
        classes: all names, in the order in which they are shown.
    """
    if task == "multilabel":
        right = Counter(chain(*(set(one) & set(other) for one, other in zip(said, truths, strict=True))))
        return {"classes": _scores(classes, Counter(chain(*said)), Counter(chain(*truths)), right)}
    if task == "classification":
        return _of_single(said, truths, classes)
    if task == "tokens":
        guesses, wanted = _labelled(said, truths)
        found = _of_single(list(chain(*guesses)), list(chain(*wanted)), classes)
        if are_span_tags(classes):
            found["entities"] = _entities(guesses, wanted)
        return found
    return {}


def _of_single(guesses: Sequence[str], truths: Sequence[str], classes: Sequence[str]) -> ByClass:
    pairs = Counter(zip(truths, guesses, strict=True))
    right = Counter({name: pairs[name, name] for name in classes})
    found: ByClass = {"classes": _scores(classes, Counter(guesses), Counter(truths), right)}
    if len(classes) <= MATRIX:
        found["confusion"] = [[pairs[truth, guess] for guess in classes] for truth in classes]
    return found


def _labelled(said: Sequence[list[str]], truths: Sequence[list[str | None]]) -> tuple[list[list[str]], list[list[str]]]:
    """Of each row the classes of its words that have a label: what is said, and what is right."""
    pairs = [
        [(one, other) for one, other in zip(row, wanted, strict=True) if other is not None]
        for row, wanted in zip(said, truths, strict=True)
    ]
    return [[one for one, _ in row] for row in pairs], [[other for _, other in row] for row in pairs]


def _entities(guesses: Sequence[list[str]], truths: Sequence[list[str]]) -> dict[str, ClassScores]:
    """Of each kind of entity."""
    guessed, true = (_located(side) for side in (guesses, truths))
    counts = [Counter(kind for _, (kind, _, _) in spans_) for spans_ in (guessed, true, guessed & true)]
    return _scores(sorted({*counts[0], *counts[1]}), *counts)


def _located(rows: Iterable[list[str]]) -> set[tuple[int, Span]]:
    return {(number, span) for number, row in enumerate(rows) for span in spans(row)}


def _scores(
    names: Collection[str], guessed: Counter[str], true: Counter[str], right: Counter[str]
) -> dict[str, ClassScores]:
    return {name: _f1(guessed[name], true[name], right[name]) for name in names}


def _f1(guessed: int, true: int, right: int) -> ClassScores:
    """Shares in 0..1, 0 where there is nothing to divide by."""
    return {
        "precision": right / guessed if guessed else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (guessed + true) if guessed + true else 0.0,
        "rows": true,
    }


TASKS: dict[str, Callable[[Any, Any], Scores]] = {
    "classification": classification,
    "multilabel": multilabel,
    "regression": regression,
    "tokens": tokens,
}
