"""What the preparation of data asks of the thing to be learnt: how a file is read, and how an example becomes tokens.

The objectives (`microplane.objectives`) stand above the data; they give these parts, and no module here knows which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from microplane.config.knobs import DataKnobs
from microplane.data.reading.example import Example
from microplane.data.store import Dataset, TokenDataset, TokenRow
from microplane.data.tokenizers.tokenizer import Tokenizer


class RowFormat(Protocol):
    """How the rows of one file are read; printed as the user reads it."""

    @property
    def name(self) -> str:
        """Of the format, as in `data.format`; of rows with labels the kind of the labels, as in `data.task`."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that are read; there may be others."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes where the format fixes them, as of multi-hot rows; else the rows name their own."""

    def example(self, values: Mapping[str, Any], where: str) -> Example:
        """Raises: RowError, for a row that does not fit the format; NoLabel, for one that is not to be trained."""


@dataclass(frozen=True)
class RowTraits:
    """What is the same for all rows of a renderer."""

    template: str  # "chat", "plain" or "none"
    stops: tuple[int, ...] = ()  # tokens that end an answer
    classes: tuple[str, ...] = ()  # names of the labels
    bounds_target: bool = False  # the answer has a greatest length of its own
    counted: Literal["tokens", "rows", "words"] = "tokens"  # what the loss is a sum over
    labels_per_token: bool = False  # of the stored labels: one for each token, or for the row as a whole


class Renderer(Protocol):
    """How examples become token rows, for one tokenizer, template and system prompt."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def traits(self) -> RowTraits: ...

    def rows(self, example: Example, max_length: int, max_target: int) -> list[TokenRow]:
        """One row, or several where an example is cut into them. They depend on the example alone: many are made at
        once in copies of the process, whose generators would all draw the same; what is drawn belongs in a `Dataset`.

        Raises:
            DataError: for an example that the template refuses.
        """


class DataObjective(Protocol):
    """The part of an objective that decides what is stored of the data."""

    @property
    def name(self) -> str: ...

    @property
    def needs_head(self) -> bool: ...

    def renderer(self, tokenizer: Tokenizer, template: str, system: str | None, classes: Sequence[str]) -> Renderer: ...

    def view(self, rows: TokenDataset, knobs: DataKnobs, tokenizer: Tokenizer, seed: int) -> Dataset:
        """Stored rows as they are trained on."""


O_co = TypeVar("O_co", bound=DataObjective, covariant=True)


class Candidates(Protocol[O_co]):
    """What a model may be trained for before its data has been looked at; the format of the rows decides."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels that the model's head knows already."""

    def key(self) -> list[str | None]:
        """All of it that decides the tokens."""

    def read_format(self, rows: Sequence[Mapping[str, Any]], file: str, knobs: DataKnobs) -> RowFormat:
        """Raises: DataError, if these rows of a file fit no format."""

    def objective(self, format_name: str) -> O_co:
        """Raises: ConfigError, if the user asked for one that does not fit these rows."""
