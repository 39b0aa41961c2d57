"""What rows a model takes and what it is trained for: one row that goes on, a pair, or a row with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "pairs", "labels"]
Task = Literal["classification", "multilabel", "regression", "tokens"]


@dataclass(frozen=True)
class Shape:
    """Decides how examples become tokens, beside the tokenizer and the knobs."""

    kind: Kind = "text"
    start: int | None = None  # of pairs: the token that the decoder begins with
    task: Task | None = None  # of labels


TEXT = Shape()
