"""The rows of a step as it computes them: drawn, cut into micro-batches and put where the model is.

On an accelerator those of the next step are made while the device still computes this one. Which rows they are follows
from the step's number alone, so nothing changes by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from microplane.data.store import Dataset


@dataclass(frozen=True)
class StepRows:
    """What one process computes in a step.

    Attributes:
        step: its number, counted from 0.
        at_once: the most tokens of a micro-batch.
        train: the rows to train on, as their epoch has them.
        rows: the numbers of all of the step's rows, those of other processes included.
        parts: of this process's rows, by micro-batch.
        batches: the same, where the model is.
    """

    step: int
    at_once: int
    train: Dataset
    rows: np.ndarray
    parts: list[list[int]]
    batches: list[Any]


class Ahead:
    """The rows of one step that was not asked for yet, at most."""

    def __init__(self, make: Callable[[int, int], StepRows]):
        """Args: make: the rows of a step, of at most so many tokens at once."""
        self._make = make
        self._next: StepRows | None = None

    def take(self, step: int, at_once: int) -> StepRows:
        """Those of a step, made now unless they were made ahead."""
        there, self._next = self._next, None
        if there is not None and (there.step, there.at_once) == (step, at_once):
            return there
        return self._make(step, at_once)

    def prepare(self, step: int, at_once: int) -> None:
        """Make those of a step that comes next."""
        self._next = self._make(step, at_once)
