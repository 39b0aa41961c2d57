"""Numbers of any size are learnt: a regression's head trains in a unit of about the labels' standard deviation, and
begins at their mean.

With prices near 1e5 a head in the labels' own unit would need weights that no step of the usual size reaches. The unit
is a power of two: multiplying by it rounds nothing, so what is saved in the labels' unit says the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from microplane.data.batch_plan import micro_batches
from microplane.data.store import Dataset
from microplane.models.contract import Model, in_eval_mode
from microplane.models.heads import task_scores
from microplane.objectives.base import AnyObjective
from microplane.objectives.collate import batch_of
from microplane.objectives.regression import Regression

SHOWN = 64  # training rows by which a head without a bias finds what says their mean
LARGEST = 100  # exponent of a unit


@dataclass(frozen=True)
class Numbers:
    """The labels of the training rows.

    Attributes:
        mean: of all.
        unit: their standard deviation, rounded to a power of two; of equal ones, their size.
    """

    mean: float
    unit: float

    @classmethod
    def of(cls, rows: Dataset) -> Self:
        labels = np.concatenate([rows.labels(row) for row in range(len(rows))]).astype(np.float64)
        mean = float(labels.mean())
        spread = float(labels.std()) or abs(mean) or 1.0
        return cls(mean, 2.0 ** max(-LARGEST, min(LARGEST, round(math.log2(spread)))))


def with_unit(objective: AnyObjective, numbers: Numbers | None) -> AnyObjective:
    """The objective whose loss counts in that unit."""
    if numbers is None or not isinstance(objective, Regression):
        return objective
    return replace(objective, unit=numbers.unit)


def begin_with(numbers: Numbers, objective: AnyObjective, model: Model, rows: Dataset, new: bool, at_once: int) -> None:
    """Let the head of a model learn in the unit of the training rows.

    Args:
        new: whether the head is, and is to say their mean at first.
        at_once: tokens that are computed together.
    """
    head = model.task_head
    assert head is not None, "numbers need a task head"
    head.learn_in(numbers.unit, numbers.mean if new else None)
    if new and head.last is not None and head.last.bias is None:
        with torch.no_grad():
            found = _constant(_inputs(objective, model, rows, at_once))
            head.last.weight.add_(found * (numbers.mean / head.unit))


def _inputs(objective: AnyObjective, model: Model, rows: Dataset, at_once: int) -> Tensor:
    """What the head's last layer is given for some training rows, (B, D)."""
    head, seen = model.task_head, list[Tensor]()
    assert head is not None
    assert head.last is not None

    def keep(module: Any, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0].float())

    chosen = np.random.default_rng(0).permutation(len(rows))[:SHOWN]
    hook = head.last.register_forward_pre_hook(keep)
    try:
        with in_eval_mode(model):
            for indices in micro_batches(chosen, rows.lengths, at_once):
                _scores(objective, model, rows, indices)
    finally:
        hook.remove()
    return torch.cat(seen)


def _scores(objective: AnyObjective, model: Model, rows: Dataset, indices: Sequence[int]) -> None:
    batch: Any = batch_of(objective, model, rows, indices)
    task_scores(model, batch.rows, batch.cached_features)


def _constant(x: Tensor) -> Tensor:
    """Weights (D,) whose product with rows like `x` (B, D) is near 1: ridge regression, brought to the mean 1."""
    products = x @ x.T
    products.diagonal().add_(products.diagonal().mean().clamp(min=1e-12))
    weights: Tensor = x.T @ torch.linalg.solve(products, torch.ones(len(x), device=x.device))
    mean = (x @ weights).mean()
    return weights / mean if mean > 0 else weights
