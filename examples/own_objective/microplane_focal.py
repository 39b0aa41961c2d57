"""Focal loss for answers (arXiv 1708.02002), a format of rows, and a metric.

    loss = -(1 - p)^2 log p,  p the probability of a target token

What the model knows already counts little, so the steps go where it is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from microplane.data.reading.bad_rows import RowError
from microplane.data.reading.example import Example, Message
from microplane.models.contract import Model
from microplane.objectives.next_token import NextToken
from microplane.objectives.text import TokenBatch

GAMMA = 2


@dataclass(frozen=True)
class Focal(NextToken):
    """The next token, as `NextToken` reads and batches it, by the focal loss. For decoders."""

    name: ClassVar[str] = "focal"

    @classmethod
    def of(cls, model: Model) -> Focal:
        """Raises: TypeError, for a model that reads and writes on two sides."""
        if model.KIND != "decoder":
            raise TypeError("focal is for decoders")
        return cls()

    def loss(self, model: Model, batch: TokenBatch, label_smoothing: float = 0.0) -> Tensor:
        """The sum over the target tokens, a float32 scalar. `label_smoothing` has no meaning here and must be 0."""
        assert label_smoothing == 0
        hidden = (
            model(batch.rows)
            if batch.cached_features is None
            else model.upper(batch.cached_features, batch.rows, model.frozen)
        )
        nll = F.cross_entropy(model.logits(hidden[batch.positions]).float(), batch.targets, reduction="none")
        return ((1 - (-nll).exp()) ** GAMMA * nll).sum()


def two_speakers(values: Mapping[str, Any], where: str) -> Example:
    """Rows like `{"lines": "A: hello\\nB: hi"}`: A asks and B answers, in turn."""
    text = values.get("lines")
    if not isinstance(text, str):
        raise RowError("not text", "key 'lines' must be a text of lines that begin with A: or B:")
    messages = []
    for number, line in enumerate(text.splitlines()):
        speaker, _, said = line.partition(": ")
        if speaker != "AB"[number % 2]:
            raise RowError("wrong speaker", f"line {number + 1} is {speaker[:20]!r}, expected {'AB'[number % 2]}")
        messages.append(Message("user" if speaker == "A" else "assistant", said))
    return Example(tuple(messages), None, where)


def first_word(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """The share of answers that begin with the right word."""
    pairs = zip(predictions, targets, strict=True)
    right = [prediction.split()[:1] == target.split()[:1] for prediction, target in pairs]
    return {"first_word": sum(right) / max(1, len(right))}
