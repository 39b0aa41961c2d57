"""One file that holds several splits: a column says of each row which of them it belongs to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from microplane.data.reading.bad_rows import Problem, show
from microplane.data.reading.columns import Fields
from microplane.data.reading.lines import RawRow
from microplane.data.reading.read import SPLITS, check_file, read_rows
from microplane.data.reading.values import is_filled
from microplane.errors import DataError

COLUMN = "split"  # that is looked for
LOOKED = 100  # rows by which it is seen that a file has the column
_CALLED = {name: split for split, names in SPLITS.items() for name in names}
_EXPECTED = "train, validation or test"


@dataclass(frozen=True)
class Marks:
    """The column, as the file spells it, and the splits that rows of the file belong to."""

    column: str
    splits: frozenset[str]


@dataclass(frozen=True)
class Part:
    """The rows of a file that a column says to belong to one split."""

    column: str
    split: str


def marks_of(path: Path, fields: Fields | None = None) -> Marks | None:
    """How a file is divided: by a column `split` in which nothing but names of splits stands, training rows and others;
    None of a file that is one split.

    Args:
        fields: as the knob `data.fields`; its part `split` names another column, or none.

    Raises:
        DataError: for a file that cannot be read, or where a column that the user named holds something else.
    """
    check_file(path)
    fields, stat = fields or {}, path.stat()
    version = stat.st_size, stat.st_mtime_ns
    if "split" in fields:
        column = fields["split"]
    else:
        column = _spelled(path, version)
        column = None if column in fields.values() else column
    if column is None:
        return None
    splits = _splits(path, column, version, "split" in fields)
    return Marks(column, splits) if "train" in splits and len(splits) > 1 else None


@lru_cache(maxsize=16)
def _spelled(path: Path, version: tuple[int, int]) -> str | None:
    """The column's name as the first rows of a file have it. `version` is of the file's content."""
    there = (name for row in islice(read_rows(path), LOOKED) for name in row.values or {})
    return next((name for name in there if name.strip().lower() == COLUMN), None)


@lru_cache(maxsize=16)
def _splits(path: Path, column: str, version: tuple[int, int], asked: bool) -> frozenset[str]:
    """The splits that a column names; none where it holds something else. `version` is of the file's content."""
    found: set[str] = set()
    for row in read_rows(path, (column,)):
        value = (row.values or {}).get(column)
        if not is_filled(value):
            continue
        if (split := _called(value)) is None:
            if asked:
                raise DataError(
                    f"{path.name}:{row.line}: data.fields reads the split from {column!r}, which is {show(value)}, "
                    f"expected {_EXPECTED}"
                )
            return frozenset()
        found.add(split)
    return frozenset(found)


def _called(value: Any) -> str | None:
    return _CALLED.get(value.strip().lower()) if isinstance(value, str) else None


def rows_of(path: Path, part: Part | None, keys: Collection[str] = ()) -> Iterator[RawRow]:
    """The rows of a file, or those of one part of it, without the column that says so. A row that says nothing, or
    something else, is a complaint.

    Args:
        keys: as of `read_rows`.
    """
    if part is None:
        yield from read_rows(path, keys)
        return
    for row in read_rows(path, (*keys, part.column) if keys else ()):
        if row.values is None:
            yield row
            continue
        value = row.values.pop(part.column, None)
        split = _called(value)
        if split is None:
            told = f"key {part.column!r} is {show(value)}, expected {_EXPECTED} as in other rows"
            yield RawRow(row.line, problem=Problem("no split", told))
        elif split == part.split:
            yield row
