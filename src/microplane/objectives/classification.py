"""One class for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.data.rendering.labelled import LabelRenderer, OneClassRenderer
from microplane.device import put
from microplane.models.configs.head import IGNORED, Task
from microplane.objectives.head import HeadObjective, Prediction


@dataclass(frozen=True)
class Classification(HeadObjective):
    """Cross-entropy of the row's class.

    Args:
        class_weights: what the loss of a row of each class is multiplied by; empty for 1.
    """

    class_weights: tuple[float, ...] = ()
    name: ClassVar[Task] = "classification"
    rendered_by: ClassVar[type[LabelRenderer]] = OneClassRenderer

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Labels are numbers of classes, (B,)."""
        weights = (
            put(torch.tensor(self.class_weights, dtype=scores.dtype), scores.device) if self.class_weights else None
        )
        return F.cross_entropy(scores, labels.long(), weights, ignore_index=IGNORED, reduction="sum")

    def words(self, scores: Tensor, classes: Sequence[str]) -> list[str]:
        """The likeliest class."""
        return [classes[number] for number in scores.argmax(-1).tolist()]

    def truth(self, labels: np.ndarray, classes: Sequence[str]) -> str:
        """The class."""
        return classes[int(labels[0])]

    def line(self, words: str, truth: str) -> str:
        """The class itself."""
        return words

    def probabilities(self, scores: Tensor) -> Tensor:
        """They sum to 1."""
        return scores.softmax(-1)

    def scores_of(self, probabilities: Tensor) -> Tensor:
        """Their logarithms."""
        return probabilities.log()

    def prediction(self, probabilities: Tensor, classes: Sequence[str]) -> Prediction:
        """The likeliest class, and the probability of each."""
        by_class = dict(zip(classes, probabilities.tolist(), strict=True))
        return Prediction(classes[int(probabilities.argmax())], probabilities=by_class)
