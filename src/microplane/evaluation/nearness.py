"""How near a task is to what a model does already: its loss on held-out rows, against the same rows with the answers of
others. A model that knows nothing of the task finds every answer as good as another."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from microplane.data.store import Dataset, Features, last_run
from microplane.evaluation.evaluate import choose_rows, evaluate_loss
from microplane.models.contract import Model
from microplane.objectives.base import AnyObjective

ROWS = 64  # that are looked at, at most
PARTS, OF_PART = 4, 4  # of rows, and how many are in one, that are looked at for whether a model ignores its inputs
SAME = 0.005  # of the loss: what differs by less is the same


@dataclass(frozen=True)
class Nearness:
    """Losses on the same rows.

    Attributes:
        loss: with their own answers.
        shuffled: with the answers of other rows.
    """

    loss: float
    shuffled: float

    @property
    def share(self) -> float:
        """Of the loss with other answers, what the own ones save: 0 of a task of which nothing is known."""
        return 1 - self.loss / self.shuffled if self.shuffled > 0 else 0.0


class Paired:
    """A `Dataset` of prompts of some rows, each with the last answer (or the labels) of another row."""

    features: Features | None = None

    def __init__(self, rows: Dataset, prompts: Sequence[int], answers: Sequence[int]):
        self._rows, self._prompts, self._answers = rows, list(prompts), list(answers)
        self.fingerprint = f"{rows.fingerprint} paired"
        self._labelled = any(len(rows.labels(row)) for row in prompts)
        parts = [self._parts(number) for number in range(len(self))]
        self.lengths = np.array([len(prompt) + len(answer) for prompt, answer in parts], np.int32)
        counts = [1 if self._labelled else len(answer) for _, answer in parts]
        self.trained_counts = np.array(counts, np.int32)

    def _parts(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the prompt, and of the answer."""
        prompt, answer = self._prompts[number], self._answers[number]
        ids, targets = self._rows[prompt]
        if self._labelled:
            return ids, ids[:0]
        if not targets.any():  # a pair
            return self._rows.pair(prompt)[0], self._rows.pair(answer)[1]
        others, theirs = self._rows[answer]
        start, end = last_run(theirs.tolist())
        room = int(self._rows.lengths.max()) - (end - start)  # no row is longer than those that there are
        return ids[max(0, (begin := last_run(targets.tolist())[0]) - max(room, 1)) : begin], others[start:end]

    @property
    def highest_id(self) -> int:
        return self._rows.highest_id

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        prompt, answer = self._parts(row)
        return np.concatenate([prompt, answer]), np.arange(len(prompt) + len(answer)) >= len(prompt)

    def pair(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self._parts(row)

    def segments(self, row: int) -> np.ndarray:
        return self._rows.segments(self._prompts[row])

    def labels(self, row: int) -> np.ndarray:
        return self._rows.labels(self._answers[row])

    def at(self, epoch: int) -> Paired:
        return copy.copy(self)

    def where(self, row: int) -> str:
        return self._rows.where(self._prompts[row])

    def prompt_and_target(self, row: int) -> tuple[list[int], list[int]]:
        prompt, answer = self._parts(row)
        return prompt.tolist(), answer.tolist()


def nearness(objective: AnyObjective, model: Model, rows: Dataset, batch_tokens: int) -> Nearness:
    """Of a model to held-out rows. Each row gets the answer of another one, drawn by a fixed seed.

    Args:
        rows: with answers or with one label each, at least two of them.
        batch_tokens: tokens computed at once, at most.
    """
    chosen = choose_rows(rows, ROWS)
    order = np.random.default_rng(0).permutation(len(chosen))
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)
    own = Paired(rows, chosen, chosen)
    shuffled = Paired(rows, chosen, [chosen[number] for number in others])
    return Nearness(*(evaluate_loss(objective, model, sets, batch_tokens) for sets in (own, shuffled)))


def comparable(template: str | None, task: str | None, rows: Dataset) -> bool:
    """Whether rows have inputs and answers that can be exchanged.

    Args:
        template: of the rows, by their summary; `none` of plain text.
        task: of their labels; None where there are none.
    """
    return not (template == "none" and not task) and task != "tokens" and len(rows) > 1


def ignores_inputs(objective: AnyObjective, model: Model, rows: Dataset, batch_tokens: int) -> bool:
    """Whether a model gives the same answer whatever it is asked: the losses of the same answers to the inputs of other
    rows hardly differ, in none of several parts of the rows.

    A model that knows nothing of a task yet does not do so: its answers are wrong, and still depend on the inputs. One
    whose rate was far too high does.

    Args:
        rows: with answers or labels, see `comparable`.
    """
    chosen = choose_rows(rows, PARTS * OF_PART)
    moved = [*chosen[1:], *chosen[:1]]
    for part in range(min(PARTS, len(chosen))):
        asked = (chosen[part::PARTS], moved[part::PARTS])
        pairs = (Paired(rows, inputs, chosen[part::PARTS]) for inputs in asked)
        own, other = (evaluate_loss(objective, model, few, batch_tokens, least_batches=1) for few in pairs)
        if not abs(own - other) <= SAME * abs(own):
            return False
    return True
