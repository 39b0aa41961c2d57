"""Which rows make which optimizer step: drawn by index from a seeded order, so any step can be found again.

An epoch is a seeded shuffle of all rows, sorted by length within pools of `POOL` steps, cut into steps, and the steps
shuffled. A step is a list of row numbers; `micro_batches` cuts it by a token budget into what is computed at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from microplane.config.knobs import TrainKnobs

POOL = 50  # steps whose rows are sorted by length together: little padding in attention, and still well mixed
ENOUGH_STEPS = 400  # of the optimizer: few rows are read again until a run has made so many
MOST_PASSES = 3  # for that


@dataclass
class BatchPlan:
    """The rows of every optimizer step.

    Args:
        lengths: tokens of each row, (N,).
        batch_size: rows in a step.
        batch_tokens: tokens in a step instead; a row longer than this makes a step alone.
        seed: of all orders.
    """

    lengths: np.ndarray
    batch_size: int
    batch_tokens: int | None = None
    seed: int = 0
    _epochs: dict[int, list[np.ndarray]] = field(default_factory=dict, repr=False)
    _counts: dict[int, int] = field(default_factory=dict, repr=False)  # steps of each epoch that was planned once

    @classmethod
    def of(cls, lengths: np.ndarray, knobs: TrainKnobs) -> BatchPlan:
        """Of a run."""
        return cls(lengths, knobs.batch_size, knobs.batch_tokens, knobs.seed)

    def epoch(self, number: int) -> list[np.ndarray]:
        """All steps of one pass over the rows, each an array of row numbers."""
        if number not in self._epochs:
            while len(self._epochs) > 1:  # one is in use; keep one more, so a step at the border is cheap
                self._epochs.pop(min(self._epochs))
            self._epochs[number] = self._plan(number)
        return self._epochs[number]

    def _count(self, number: int) -> int:
        """Steps of an epoch."""
        if not self.batch_tokens:
            return math.ceil(len(self.lengths) / self.batch_size)
        if number not in self._counts:
            self._counts[number] = len(self._plan(number))
        return self._counts[number]

    def _plan(self, number: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.lengths))
        rows_per_step = self.batch_size
        if self.batch_tokens:
            rows_per_step = max(1, round(self.batch_tokens / max(1.0, float(self.lengths.mean()))))
        pool = POOL * rows_per_step
        # Every pool holds whole steps, so an epoch has ceil(N / batch_size) of them and only the last may be short.
        steps = [step for start in range(0, len(order), pool) for step in self._cut(order[start : start + pool])]
        return [steps[i] for i in rng.permutation(len(steps))]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        if not self.batch_tokens:
            return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        return [np.asarray(part) for part in pack(rows.tolist(), self.lengths, self.batch_tokens)]

    def total_steps(self, epochs: float) -> int:
        """Optimizer steps in so many passes; a last partial pass is rounded to whole steps."""
        if not self.batch_tokens:
            return max(1, round(epochs * self._count(0)))
        whole = math.floor(epochs)
        rest = epochs - whole
        return max(1, sum(map(self._count, range(whole))) + (round(rest * self._count(whole)) if rest else 0))

    def run_steps(self, knobs: TrainKnobs) -> int:
        """Optimizer steps of a run: `train.steps`, or else those of its passes."""
        return knobs.steps or self.total_steps(self.passes(knobs))

    def passes(self, knobs: TrainKnobs) -> float:
        """How often a run reads the rows: as `train.steps` or `train.epochs` say, or else once, and few rows as often
        as makes `ENOUGH_STEPS` (docs/methods/README.md has what that rests on)."""
        once = self.total_steps(1)
        if knobs.steps:
            return knobs.steps / once
        return knobs.epochs or min(MOST_PASSES, math.ceil(ENOUGH_STEPS / once))

    def at(self, step: int) -> tuple[int, np.ndarray]:
        """(epoch, row numbers) of the optimizer step number `step`, counted from 0."""
        number = 0
        if not self.batch_tokens:
            number, step = divmod(step, self._count(0))
        while step >= self._count(number):
            step -= self._count(number)
            number += 1
        return number, self.epoch(number)[step]


def pack(rows: Sequence[int], lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Cut a sequence of rows, in order, into runs of at most `budget` tokens; a longer row makes a run alone."""
    runs: list[list[int]] = []
    room = 0
    for row in rows:
        if not runs or lengths[row] > room:
            runs.append([])
            room = budget
        runs[-1].append(row)
        room -= int(lengths[row])
    return runs


def packed_by_length(lengths: np.ndarray, budget: int) -> list[list[int]]:
    """All rows as they are computed outside of training: the longest first, within a token budget."""
    return pack(np.argsort(-lengths, kind="stable").tolist(), lengths, budget)


def micro_batches(rows: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """The rows of one step as what is computed at once: of similar length, longest first, within a token budget."""
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    return [ordered[part].tolist() for part in pack(range(len(ordered)), lengths[ordered], budget)]
