"""What objectives with a task head share: labels of rows or tokens, and how the head's scores are read.

Shapes: T tokens of all rows side by side, B rows, C classes or values of a regression, D model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from microplane.config.knobs import DataKnobs
from microplane.data.reading.example import Message
from microplane.data.rendering.labelled import LabelRenderer
from microplane.data.store import Dataset, TokenDataset
from microplane.data.tokenizers.tokenizer import Encoded, Tokenizer
from microplane.device import put
from microplane.errors import ConfigError
from microplane.models.configs.head import Task
from microplane.models.contract import Model
from microplane.models.heads import task_scores
from microplane.nn.rows import Rows
from microplane.objectives.base import PROBE_TOKENS, Judge, Measured, ProbeRow
from microplane.objectives.collate import features_of, rows_of

Text = str | tuple[str, str]  # one text, or two that belong together


@dataclass(frozen=True)
class LabelBatch:
    """Rows side by side and their labels."""

    rows: Rows
    labels: Tensor  # float32: (B,) classes or numbers, (B, C) of several classes, (T,) of tokens
    count: int  # rows, or labelled tokens
    cached_features: Tensor | None = None  # (T, D) as of a TokenBatch, or (B, D): the rows' pooled vectors

    def to(self, device: torch.device) -> LabelBatch:
        """The batch on a device."""
        cached = None if self.cached_features is None else put(self.cached_features, device)
        return LabelBatch(self.rows.to(device), put(self.labels, device), self.count, cached)


@dataclass(frozen=True)
class Prediction:
    """What a task head says of a text, or of a word in it."""

    label: str = ""  # of one class: the likeliest
    labels: tuple[str, ...] = ()  # of several classes: those with a probability above one half
    probabilities: dict[str, float] | None = None  # of each class
    values: tuple[float, ...] = ()  # of a regression
    words: tuple[tuple[str, Prediction], ...] = ()  # of a class for each word: the words in their order

    def __str__(self) -> str:
        if self.values:
            return ", ".join(digits(value, 4) for value in self.values)
        if self.words:
            return " ".join(f"{word}/{prediction.label}" for word, prediction in self.words)
        ranked = sorted((self.probabilities or {}).items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {share:.1%}" for name, share in ranked[:5])
        return f"{self.label or ', '.join(self.labels) or '(none)'}  ({shares})"


def digits(value: float, most: int) -> str:
    """A number with so many digits, or with all before its point where these are more."""
    return f"{value:.0f}" if 10**most <= abs(value) < 1e15 else f"{value:.{most}g}"


class HeadObjective(ABC):
    """The shared part of an `Objective` whose answers come from a task head."""

    name: ClassVar[Task]
    needs_head: ClassVar[bool] = True
    rendered_by: ClassVar[type[LabelRenderer]]
    per_row: ClassVar[bool] = True  # one label a row, not one for each word

    @classmethod
    def of(cls, model: Model) -> Self:
        """For a model of any kind."""
        return cls()

    # From an example to a loss

    def renderer(
        self, tokenizer: Tokenizer, template: str, system: str | None, classes: Sequence[str]
    ) -> LabelRenderer:
        """The text as it stands: neither template nor system prompt."""
        return self.rendered_by(tokenizer, classes)

    def view(self, rows: TokenDataset, knobs: DataKnobs, tokenizer: Tokenizer, seed: int) -> TokenDataset:
        """The stored rows as they are."""
        return rows

    def collate(self, dataset: Dataset, indices: Sequence[int]) -> LabelBatch:
        """Whole rows, and their labels."""
        rows = rows_of([dataset[index][0] for index in indices], [dataset.segments(index) for index in indices])
        labels = self.joined([dataset.labels(index) for index in indices])
        count = int(dataset.trained_counts[list(indices)].sum())
        return LabelBatch(rows, torch.from_numpy(labels), count, features_of(dataset, indices))

    def joined(self, labels: Sequence[np.ndarray]) -> np.ndarray:
        """The labels of several rows as one array: (B,), or (T,) of tokens."""
        return np.concatenate(labels)

    def loss(self, model: Model, batch: LabelBatch, label_smoothing: float = 0.0) -> Tensor:
        """See `loss_of_scores`."""
        return self.loss_of_scores(task_scores(model, batch.rows, batch.cached_features), batch.labels)

    def loss_of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss, summed over rows (or over the tokens that have a label), as transformers' problem_type defines it;
        its mean there is this sum, divided by the number of rows (or of those tokens).

        Args:
            scores: (B, C), of tokens (T, C).
            labels: as of a `LabelBatch`.
        """
        return self._loss(scores.to(torch.promote_types(scores.dtype, torch.float32)), labels)

    @abstractmethod
    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The same of scores that are at least float32."""

    # What is said of a model

    def measure(self, model: Model, dataset: Dataset, rows: Sequence[int], judge: Judge) -> Measured:
        """Metrics of the head on all rows, which costs no more than the loss, and what it says of `rows`.

        Rows that are windows of one text count as one, and the same is said of each (see `over_windows`).
        """
        classes = head_classes(model)
        predicted: dict[int, Any] = {}
        total, count = 0.0, 0
        windows = windows_of(dataset) if self.per_row else None
        kept: dict[int, Tensor] = {}

        def predict(indices: list[int], batch: LabelBatch) -> None:
            nonlocal total, count
            scores = task_scores(model, batch.rows, batch.cached_features)
            total, count = total + self.loss_of_scores(scores, batch.labels).item(), count + batch.count
            predicted.update(zip(indices, self.by_row(self.words(scores, classes), batch.rows.lengths), strict=True))
            if windows is not None:
                kept.update(zip(indices, scores.detach().float().cpu(), strict=True))

        judge.each_batch(self, model, dataset, predict)
        if windows is not None:
            scores = torch.stack([kept[row] for row in range(len(dataset))])
            predicted = dict(enumerate(self.words(self.over_windows(scores, windows), classes)))
        truths = [self.truth(dataset.labels(row), classes) for row in range(len(dataset))]
        counted = range(len(dataset)) if windows is None else [window[0] for window in windows]
        said, true = [predicted[row] for row in counted], [truths[row] for row in counted]
        return {
            "scores": {"loss": total / count, **judge.label_scores(self.name, said, true)},
            "by_class": judge.label_classes(self.name, said, true, classes),
            "prompts": [judge.tokenizer.decode(dataset[row][0].tolist()) for row in rows],
            "targets": [self.line(truths[row], truths[row]) for row in rows],
            "texts": [self.line(predicted[row], truths[row]) for row in rows],
        }

    def over_windows(self, scores: Tensor, windows: Sequence[Sequence[int]]) -> Tensor:
        """Scores (B, C) of rows of which some are windows of one text: each gets those of the mean of what its text's
        windows say, of probabilities where there are classes.

        Args:
            windows: the rows of each text.
        """
        said = self.probabilities(scores)
        means = torch.empty_like(said)
        for rows in windows:
            means[rows] = said[rows].mean(0)
        return self.scores_of(means)

    @abstractmethod
    def words(self, scores: Tensor, classes: Sequence[str]) -> list[Any]:
        """What the scores (B, C) or (T, C) say, in words: of each of them a class, some classes, or values."""

    def by_row(self, words: list[Any], lengths: Sequence[int]) -> list[Any]:
        """What `words` gave, by row."""
        return words

    @abstractmethod
    def truth(self, labels: np.ndarray, classes: Sequence[str]) -> Any:
        """A row's stored labels in the same words."""

    @abstractmethod
    def line(self, words: Any, truth: Any) -> str:
        """A row's words as one line; `truth` tells which tokens have a label."""

    def probe_row(self, dataset: Dataset, row: int) -> ProbeRow:
        """Its first tokens."""
        return ProbeRow(dataset[row][0][:PROBE_TOKENS].tolist())

    def probe(self, model: Model, row: ProbeRow) -> Tensor:
        """Scores (1, C), of tokens (T, C)."""
        return task_scores(model, Rows.of([row.ids]).to(model.device))

    # Using a model

    @abstractmethod
    def probabilities(self, scores: Tensor) -> Tensor:
        """Of the classes, in the shape of the scores; of a regression the values."""

    def scores_of(self, probabilities: Tensor) -> Tensor:
        """Scores of which `probabilities` gives these."""
        return probabilities

    @abstractmethod
    def prediction(self, probabilities: Tensor, classes: Sequence[str]) -> Prediction:
        """What (C,) of them say."""

    def predictions(
        self, scores: Tensor, texts: Sequence[Text], encoded: Sequence[Encoded], classes: Sequence[str]
    ) -> list[Prediction]:
        """What the scores say of each text."""
        return [self.prediction(row, classes) for row in self.probabilities(scores).cpu()]

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer, template: str, system: str | None) -> list[int]:
        """Raises: ConfigError, since a task head writes nothing."""
        raise ConfigError(
            f"this model has a task head for {self.name}: it gives labels and writes no text. Call classify instead"
        )

    def stop_ids(self, tokenizer: Tokenizer, template: str) -> tuple[int, ...]:
        """None: nothing is written."""
        return ()

    def parts(self, dataset: Dataset, row: int, tokenizer: Tokenizer, classes: Sequence[str]) -> list[tuple[str, bool]]:
        """The text, and its labels behind an arrow."""
        truth = self.truth(dataset.labels(row), classes)
        text = tokenizer.decode(dataset[row][0].tolist(), skip_special=False)
        return [(text, False), (f" -> {self.line(truth, truth)}", True)]


def head_classes(model: Model) -> tuple[str, ...]:
    """Names of the classes of a model's head."""
    assert model.task_head is not None, "rows with labels need a task head"
    return model.task_head.config.labels


def windows_of(dataset: Dataset) -> list[list[int]] | None:
    """The rows of each text, where some text has several: neighbours from one place in a file. Else None."""
    windows: list[list[int]] = []
    last = ""
    for row in range(len(dataset)):
        if (place := dataset.where(row)) == last:
            windows[-1].append(row)
        else:
            windows.append([row])
        last = place
    return windows if len(windows) < len(dataset) else None
