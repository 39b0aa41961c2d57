"""Some rows of a file become tokens, counted and ready to be written: what other processes are asked for as well."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microplane.data.preparing.split import Split
from microplane.data.reading.bad_rows import NoLabel, Problem, RowError
from microplane.data.reading.example import Example
from microplane.data.rendering.interface import Renderer
from microplane.data.rendering.labelled import UnknownClassError
from microplane.data.store import Lost, PackedRows, TokenRow, pack
from microplane.data.tokenizers.segmenter import JOINT
from microplane.errors import DataError

RawItem = tuple[str, int, int, Mapping[str, Any]]  # split that a row belongs to, file number, line, values


@dataclass
class Counts:
    """What happened to rows of one split while they were tokenised."""

    lost: Counter[Lost] = field(default_factory=Counter)
    in_pieces: int = 0  # texts that became several rows
    by_answer: int = 0  # conversations that did
    dropped: int = 0
    forged: int = 0  # rows that hold special tokens as text
    unlike: int = 0  # rows that begin their answer in another way than generation does
    targets: int = 0  # tokens to be predicted
    unknown: int = 0  # tokens that the tokenizer does not know
    unknown_targets: int = 0

    def add(self, other: Counts) -> None:
        """Those of other rows."""
        self.lost.update(other.lost)
        for name, number in vars(other).items():
            if name != "lost":
                setattr(self, name, getattr(self, name) + number)

    def count(self, row: TokenRow, unknown: int | None) -> None:
        """A row that is written.

        Args:
            unknown: the token that stands for what the tokenizer does not know.
        """
        self.lost[row.lost] += 1
        self.targets += sum(row.targets)
        self.unlike += not row.continues
        self.forged += row.forged
        if unknown is not None and unknown in row.ids:
            self.unknown += row.ids.count(unknown)
            self.unknown_targets += sum(
                is_target for token, is_target in zip(row.ids, row.targets, strict=False) if token == unknown
            )


@dataclass(frozen=True)
class Made:
    """What some rows of a file became. Dictionaries are by split."""

    items: int  # rows of the file
    rows: dict[str, PackedRows]
    counts: dict[str, Counts]
    problems: list[tuple[str, Problem]]  # with the place of each
    joined: bool  # whether any text has words joined by _


@dataclass(frozen=True)
class Making:
    """How rows of a split's files are made.

    Attributes:
        most, most_of_target: tokens of a row.
        unknown: as of `Counts.count`.
    """

    split: Split
    renderer: Renderer
    most: int
    most_of_target: int
    unknown: int | None

    def __call__(self, chunk: Sequence[RawItem]) -> Made:
        """Raises: DataError, where a row is no longer one."""
        rows: dict[str, list[TokenRow]] = defaultdict(list)
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        counts: dict[str, Counts] = defaultdict(Counts)
        problems, joined = [], False
        for side, file, line, values in chunk:
            where = f"{self.split.files[file].name}:{line}"
            try:
                example = self.split.in_form(self.split.format.example(values, where))
            except (RowError, NoLabel):  # a row that was good a moment ago
                raise DataError(f"{where} changed while it was read; run again") from None
            joined = joined or JOINT in (example.text or "")
            found = self._made(example)
            if isinstance(found, Problem):
                problems.append((where, found))
                continue
            own = counts[side]
            if len(found) > 1:
                own.in_pieces += example.messages is None
                own.by_answer += example.messages is not None
            for row in found:
                if not row.count:
                    own.dropped += 1
                    continue
                own.count(row, self.unknown)
                rows[side].append(row)
                places[side].append((file, line))
        packed = {side: pack(found, places[side]) for side, found in rows.items()}
        return Made(len(chunk), packed, dict(counts), problems, joined)

    def _made(self, example: Example) -> list[TokenRow] | Problem:
        """The rows of one; what is wrong where the template refuses it."""
        try:
            return self.renderer.rows(example, self.most, self.most_of_target)
        except DataError as error:
            unknown = isinstance(error, UnknownClassError)
            return Problem("a class of no training row" if unknown else "refused by the template", str(error))
