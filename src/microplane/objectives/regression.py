"""A number for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from microplane.data.rendering.labelled import LabelRenderer, NumberRenderer
from microplane.models.configs.head import Task
from microplane.objectives.head import HeadObjective, Prediction, digits


@dataclass(frozen=True)
class Regression(HeadObjective):
    """Squared error, the mean over the values of a row.

    Args:
        unit: in which the error is counted, see `training/numbers.py`.
    """

    unit: float = 1.0
    name: ClassVar[Task] = "regression"
    rendered_by: ClassVar[type[LabelRenderer]] = NumberRenderer

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Labels are numbers: (B, C), or (B,) where C is 1."""
        targets = labels.to(scores.dtype).view_as(scores)
        return F.mse_loss(scores / self.unit, targets / self.unit, reduction="sum") / scores.shape[1]

    def words(self, scores: Tensor, classes: Sequence[str]) -> list[list[float]]:
        """The values."""
        values: list[list[float]] = scores.tolist()
        return values

    def truth(self, labels: np.ndarray, classes: Sequence[str]) -> list[float]:
        """The values."""
        values: list[float] = labels.tolist()
        return values

    def line(self, words: list[float], truth: list[float]) -> str:
        """Six digits of each, by which they can be compared too."""
        return ", ".join(digits(value, 6) for value in words)

    def probabilities(self, scores: Tensor) -> Tensor:
        """None: the values as they are."""
        return scores

    def prediction(self, probabilities: Tensor, classes: Sequence[str]) -> Prediction:
        """The values."""
        return Prediction(values=tuple(probabilities.tolist()))
