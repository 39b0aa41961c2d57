"""What of a run's rows is computed at once, in tokens: what its memory depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from microplane.config.knobs import TrainKnobs
from microplane.data.batch_plan import BatchPlan, micro_batches
from microplane.evaluation.evaluate import LEAST_BATCHES

LOOKED_AT = 500  # steps whose rows are looked at for the largest


@dataclass(frozen=True)
class Before:
    """What is computed before the first step, without gradients.

    Attributes:
        filled: tokens at once while the features of frozen blocks are computed, to be kept; 0 where none are.
        vectors: of these features, in all files of them.
        read: tokens of prompts at once, where the untouched model writes answers.
        cached: tokens that it has room for meanwhile.
        answers: that it writes at once.
    """

    filled: int = 0
    vectors: int = 0
    read: int = 0
    cached: int = 0
    answers: int = 0


@dataclass(frozen=True)
class AtOnce:
    """What is computed at once, in tokens.

    Attributes:
        tokens: of the micro-batch that holds the most.
        row: of its rows, each weighted by its length.
        trained: of them, those that the loss is of.
        step: of a step, on average.
        evaluated: while rows that are not trained on are measured.
        sizes: how many micro-batches there are of another size than all before.
        parts: micro-batches of a step, at most.
        before: what is computed before the first step.
    """

    tokens: int
    row: int
    trained: int
    step: float
    evaluated: int
    sizes: int = 1
    parts: int = 1
    before: Before = Before()

    @classmethod
    def of(
        cls, plan: BatchPlan, measured: Sequence[np.ndarray], share: float, knobs: TrainKnobs, evaluated: int
    ) -> Self:
        """Of a run's rows.

        Args:
            measured: lengths of the rows of each set that is measured on: to validate, and to test.
            share: of the tokens that are trained.
            evaluated: as the knob `eval.batch_tokens`.
        """
        lengths, steps = plan.lengths, min(LOOKED_AT, plan.run_steps(knobs))
        every = [micro_batches(plan.at(step)[1], lengths, knobs.at_once) for step in range(steps)]
        parts = [lengths[part] for step in every for part in step]
        most = max(parts, key=lambda part: (int(part.sum()), int(part.max())))
        tokens = int(most.sum())
        return cls(
            tokens=tokens,
            row=max(1, round(float((most.astype(float) ** 2).sum() / tokens))),
            trained=math.ceil(share * tokens),
            step=float(lengths.sum()) / plan.total_steps(1),
            evaluated=max(_evaluated(rows, evaluated) for rows in measured),
            sizes=len({int(part.sum()) for part in parts}),
            parts=max(map(len, every)),
        )

    @classmethod
    def of_rows(cls, row: int, knobs: TrainKnobs, evaluated: int) -> Self:
        """Of rows that are all as long, where there are none to look at."""
        step = knobs.batch_tokens or row * knobs.batch_size
        tokens = max(row, min(knobs.at_once, step))
        return cls(tokens, row, tokens, float(step), evaluated, parts=-(-step // tokens))


def _evaluated(lengths: np.ndarray, budget: int) -> int:
    """Tokens of the largest batch of rows that are measured on, as `evaluation.evaluate` cuts them; a longer row is one
    alone."""
    return max(int(lengths.max(initial=1)), min(budget, -(-int(lengths.sum()) // LEAST_BATCHES)))
