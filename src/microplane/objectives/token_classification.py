"""A class for each word, which stands at the first token that reaches into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from microplane.data.rendering.labelled import LabelRenderer, WordClassRenderer
from microplane.data.tokenizers.tokenizer import Encoded
from microplane.models.configs.head import IGNORED, PER_TOKEN, Task
from microplane.objectives.classification import Classification
from microplane.objectives.head import Prediction, Text


@dataclass(frozen=True)
class TokenClassification(Classification):
    """Cross-entropy of the class, summed over the tokens that have one; labels are (T,), `IGNORED` at all others."""

    name: ClassVar[Task] = PER_TOKEN
    per_row: ClassVar[bool] = False
    rendered_by: ClassVar[type[LabelRenderer]] = WordClassRenderer

    def by_row(self, words: list[Any], lengths: Sequence[int]) -> list[list[Any]]:
        """The classes of each row's tokens."""
        bounds = pairwise(np.cumsum([0, *lengths]).tolist())
        return [words[start:end] for start, end in bounds]

    def truth(self, labels: np.ndarray, classes: Sequence[str]) -> Any:
        """Of each token its class, None where it has none."""
        return [None if label == IGNORED else classes[int(label)] for label in labels]

    def line(self, words: Any, truth: Any) -> str:
        """The classes of the tokens that have one."""
        return " ".join(word for word, wanted in zip(words, truth, strict=True) if wanted is not None)

    def predictions(
        self, scores: Tensor, texts: Sequence[Text], encoded: Sequence[Encoded], classes: Sequence[str]
    ) -> list[Prediction]:
        """Words are what stands between white space; the first token that reaches into a word speaks for it."""
        by_row = torch.split(self.probabilities(scores).cpu(), [len(one.ids) for one in encoded])
        return [self._words_of(*row, classes) for row in zip(texts, encoded, by_row, strict=True)]

    def _words_of(self, text: Text, encoded: Encoded, probabilities: Tensor, classes: Sequence[str]) -> Prediction:
        whole = text if isinstance(text, str) else text[0]
        words, end = [], 0
        tokens = [(place, at) for at, place in enumerate(encoded.offsets) if place[0] < place[1]]
        for word in whole.split():
            start = whole.index(word, end)
            end = start + len(word)
            token = next((at for place, at in tokens if place[1] > start and place[0] < end), None)
            if token is not None:  # else it lies behind the greatest length
                words.append((word, self.prediction(probabilities[token], classes)))
        return Prediction(words=tuple(words))
