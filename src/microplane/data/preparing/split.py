"""One split of the data: its files, what is known of them, and their rows as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.holdout import RowClasses
from microplane.data.reading.bad_rows import NoLabel, Problems, RowError
from microplane.data.reading.example import Example
from microplane.data.reading.marked import Part, rows_of
from microplane.data.reading.values import is_filled
from microplane.data.rendering.interface import RowFormat
from microplane.data.tokenizers.normaliser import UnicodeForm, in_form

MOST_COLUMNS = 1_000  # that are looked for; keys beyond them are data
BLOCK = 1_000  # places that are Python's own numbers at once


@dataclass
class Split:
    """The files of one split and what the first pass found in them."""

    name: str
    files: list[Path]
    format: RowFormat
    unicode: UnicodeForm = "as-is"  # the form that texts are brought into
    problems: Problems = field(default_factory=Problems)
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # (rows,) of the contents of good rows
    sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (rows,) characters
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # (rows, 2) file number, line
    classes: RowClasses = field(default_factory=RowClasses)  # of rows with labels
    unlabelled: int = 0  # rows that say that they have no label
    rewritten: int = 0  # rows that were in another Unicode form
    seen: list[Mapping[str, Any]] = field(default_factory=list)  # rows by which the format was chosen
    columns: set[str] = field(default_factory=set)  # those in which something stands in a row of `seen`
    pairs: int = 0  # rows with a second text
    systems: set[str | None] = field(default_factory=set)  # system messages of the rows, at most two of them
    part: Part | None = None  # of the files, where a column says of each row which split it belongs to

    def unread(self) -> Split:
        """The same rows, of which nothing is known yet."""
        return Split(self.name, self.files, self.format, self.unicode, part=self.part)

    def where(self, row: int) -> str:
        file, line = self.places[row]
        return f"{self.files[file].name}:{line}"

    def in_form(self, example: Example) -> Example:
        """With its texts in the Unicode form; itself if they are."""
        return example if self.unicode == "as-is" else example.rewritten(lambda text: in_form(text, self.unicode))

    @property
    def duplicates(self) -> int:
        """Rows that repeat an earlier one."""
        return len(self.hashes) - len(np.unique(self.hashes))

    @property
    def label(self) -> str:
        return self.files[0].name if len(self.files) == 1 else f"{self.files[0].name} and {len(self.files) - 1} more"


def examples(split: Split, knobs: DataKnobs) -> Iterator[tuple[int, int, Example]]:
    """File number, line and example of each good row, in order. Bad ones are added to `split.problems`, those without a
    label counted in `split.unlabelled`."""
    left = knobs.limit if split.name == "train" and knobs.limit else None
    for number, file in enumerate(split.files):
        for row in rows_of(file, split.part, split.format.keys):
            if left == 0:
                return
            where = f"{file.name}:{row.line}"
            if row.notice:
                split.problems.notice(where, row.notice)
            if row.values is None:
                if row.problem and (split.part is None or split.name == "train"):  # of a file of all splits told once
                    split.problems.add(where, row.problem)
                continue
            _look_for_columns(split, row.values)
            try:
                example = split.format.example(row.values, where)
            except RowError as error:
                split.problems.add(where, error.problem)
                continue
            except NoLabel:
                split.unlabelled += 1
                continue
            if left is not None:
                left -= 1
            formed = split.in_form(example)
            split.rewritten += formed is not example
            yield number, row.line, formed


def _look_for_columns(split: Split, values: Mapping[str, Any]) -> None:
    """Keep a row that has a column which no row before it has, up to a number of columns that no table has."""
    if split.columns.issuperset(values) or len(split.columns) >= MOST_COLUMNS:
        return
    if new := filled([values]) - split.columns:
        split.columns |= new
        split.seen.append(values)


def good_rows(split: Split, places: np.ndarray) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """File number, line and values of rows that were found good, in order; the values are those that are read, which a
    format of one's own does not tell: of it all.

    Args:
        places: (rows, 2) file number and line of each. A row that is not there any more ends what is found.
    """
    blocks = (places[start : start + BLOCK].tolist() for start in range(0, len(places), BLOCK))
    wanted = (tuple(place) for block in blocks for place in block)
    following = next(wanted, None)
    keys = split.format.keys
    for number, file in enumerate(split.files):
        for row in rows_of(file, split.part, keys):
            if following is None:
                return
            if row.values is not None and following == (number, row.line):
                yield number, row.line, {key: row.values[key] for key in keys or row.values if key in row.values}
                following = next(wanted, None)


def filled(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The columns in which something stands in one of the rows."""
    return {key for row in rows for key, value in row.items() if is_filled(value)}
