"""Any number of classes for each row, each of them yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.data.rendering.labelled import LabelRenderer, SomeClassesRenderer
from microplane.device import put
from microplane.models.configs.head import Task
from microplane.objectives.head import HeadObjective, Prediction


@dataclass(frozen=True)
class MultiLabel(HeadObjective):
    """Binary cross-entropy of each class, the mean over the classes.

    Args:
        class_weights: what the loss of each class is multiplied by in the rows that have it; empty for 1.
    """

    class_weights: tuple[float, ...] = ()
    name: ClassVar[Task] = "multilabel"
    rendered_by: ClassVar[type[LabelRenderer]] = SomeClassesRenderer

    def joined(self, labels: Sequence[np.ndarray]) -> np.ndarray:
        """(B, C) of 0 and 1."""
        return np.stack(labels)

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Labels are 0 or 1, (B, C)."""
        targets = labels.to(scores.dtype).view_as(scores)
        weights = (
            put(torch.tensor(self.class_weights, dtype=scores.dtype), scores.device) if self.class_weights else None
        )
        return (
            F.binary_cross_entropy_with_logits(scores, targets, reduction="sum", pos_weight=weights) / scores.shape[1]
        )

    def words(self, scores: Tensor, classes: Sequence[str]) -> list[list[str]]:
        """The classes with a probability above one half."""
        return [[name for name, yes in zip(classes, row, strict=True) if yes] for row in (scores > 0).tolist()]

    def truth(self, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
        """The classes that the row has."""
        return [name for name, yes in zip(classes, labels, strict=True) if yes]

    def line(self, words: list[str], truth: list[str]) -> str:
        """The classes, by commas."""
        return ", ".join(words) or "(none)"

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of each class by itself."""
        return scores.sigmoid()

    def scores_of(self, probabilities: Tensor) -> Tensor:
        """Their log-odds."""
        return probabilities.logit()

    def prediction(self, probabilities: Tensor, classes: Sequence[str]) -> Prediction:
        """The classes above one half, and the probability of each."""
        by_class = dict(zip(classes, probabilities.tolist(), strict=True))
        return Prediction(labels=tuple(name for name, share in by_class.items() if share > 0.5), probabilities=by_class)
