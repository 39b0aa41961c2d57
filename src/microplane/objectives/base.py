"""The interface of a thing to be learnt: from an example to a loss, and to what is said of a trained model.

Shapes: T tokens of all rows side by side, K target tokens, B rows, C classes, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NotRequired, Protocol, Self, TypeAlias, TypedDict, TypeVar

import torch
from torch import Tensor

from microplane.config.knobs import DataKnobs
from microplane.data.reading.example import Message
from microplane.data.rendering.interface import Renderer
from microplane.data.store import Dataset, TokenDataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.models.contract import Model
from microplane.nn.rows import Pairs, Rows

PROBE_TOKENS, PROBE_POSITIONS = 256, 64  # of a row that two models are compared on: what is read, what is compared


class Batch(Protocol):
    """Rows side by side and what is to be predicted."""

    @property
    def rows(self) -> Rows | Pairs: ...

    @property
    def count(self) -> int:
        """What the loss is a sum over: target tokens, rows, or labelled tokens."""

    def to(self, device: torch.device) -> Self:
        """The batch on a device. Only asked for where that is not the CPU."""


class ProbeRow(NamedTuple):
    """A row to compare two models on, as it is kept with a run."""

    ids: list[int]
    cut: int = 0  # of a pair: where its target begins


class ClassScores(TypedDict):
    """Of one class, or one kind of entity: shares in 0..1, and how often it is the right one."""

    precision: float
    recall: float
    f1: float
    rows: int  # or words, or entities


class ByClass(TypedDict, total=False):
    """What a task head does with each class."""

    classes: dict[str, ClassScores]  # in their order
    confusion: list[list[int]]  # of each class, how often which class is said, in the order of `classes`
    entities: dict[str, ClassScores]  # of tags that mark them


class Measured(TypedDict):
    """What a model does on held-out rows; the lists are of the rows whose answers are shown."""

    scores: dict[str, float]
    by_class: ByClass  # of a task head with classes, on all rows; else empty
    prompts: list[str]
    targets: list[str]
    texts: list[str]
    trained_rows: NotRequired[int]  # of the rows, those that the run was trained on, where that is known


B = TypeVar("B", bound=Batch)


class Judge(Protocol):
    """What an objective measures a model with. The evaluation, which stands above the objectives, hands it down."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def each_batch(
        self, objective: Objective[B], model: Model, dataset: Dataset, visit: Callable[[list[int], B], None]
    ) -> None:
        """See `objectives.collate.for_each_batch`."""

    def loss(self, model: Model, dataset: Dataset) -> float:
        """The mean loss of all rows, by the objective that is measured."""

    def generated(self, model: Model, dataset: Dataset, rows: Sequence[int]) -> Measured:
        """Answers that the model writes to some rows, and the metrics of `eval.metrics` on them."""

    def label_scores(self, task: str, predictions: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        """The metrics of a task head."""

    def label_classes(
        self, task: str, predictions: Sequence[Any], truths: Sequence[Any], classes: Sequence[str]
    ) -> ByClass:
        """The same by class."""


class Objective(Protocol[B]):
    """One thing to be learnt. Objects hold no weights and no rows, and are equal where their fields are.

    Attributes:
        name: in `OBJECTIVES`; of those with a task head, the task.
        needs_head: whether a task head answers, and not the model's own head for words.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_head(self) -> bool: ...

    # From an example to a loss

    def renderer(self, tokenizer: Tokenizer, template: str, system: str | None, classes: Sequence[str]) -> Renderer:
        """How an example becomes a token row.

        Raises:
            DataError: for a tokenizer or template that cannot be used so.
        """

    def view(self, rows: TokenDataset, knobs: DataKnobs, tokenizer: Tokenizer, seed: int) -> Dataset:
        """The stored rows as they are trained on; `seed` is of what is drawn anew in each epoch.

        Raises:
            DataError: for too little text, or a vocabulary that lacks what is needed.
        """

    def collate(self, dataset: Dataset, indices: Sequence[int]) -> B:
        """Rows by their numbers, side by side, with what is to be predicted; on the CPU."""

    def loss(self, model: Model, batch: B, label_smoothing: float = 0.0) -> Tensor:
        """The loss as a sum over `batch.count` items, a float32 scalar."""

    # What is said of a model

    def measure(self, model: Model, dataset: Dataset, rows: Sequence[int], judge: Judge) -> Measured:
        """Scores, `loss` (the mean on all rows of `dataset`) among them, and answers to `rows`. No row is computed
        twice for it."""

    def probe_row(self, dataset: Dataset, row: int) -> ProbeRow:
        """The start of a row, to compare two models on."""

    def probe(self, model: Model, row: ProbeRow) -> Tensor:
        """What the model makes of it: logits (up to 64, V) at the last positions, or scores (1, C) or (T, C)."""

    # Using a model

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer, template: str, system: str | None) -> list[int]:
        """Token ids that generation starts from."""

    def stop_ids(self, tokenizer: Tokenizer, template: str) -> tuple[int, ...]:
        """Tokens that end an answer, first the one that answers are trained to end with; none where nothing is
        written."""

    def parts(self, dataset: Dataset, row: int, tokenizer: Tokenizer, classes: Sequence[str]) -> list[tuple[str, bool]]:
        """A row to be looked at: its text in parts, and whether each of them is to be predicted."""


AnyObjective: TypeAlias = Objective[Any]
"""Where it does not matter what its batches look like."""
