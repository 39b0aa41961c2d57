"""A text file as lines of bytes, perhaps compressed, and what a row of any file is before its keys are looked at."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from microplane.data.reading.bad_rows import Problem
from microplane.errors import DataError, nearest

MAX_LINE = 16 * 2**20  # bytes; a longer line is reported and never given to a parser
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
BOM = b"\xef\xbb\xbf"
_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}


@dataclass(frozen=True)
class RawRow:
    """One row: its values, or the complaint about it. `line` counts lines from 1 (rows in JSON and Parquet)."""

    line: int
    values: dict[str, Any] | None = None
    problem: Problem | None = None
    notice: str = ""  # of values that may not be what was meant


def file_type(path: Path) -> str:
    """The suffix that says how a file is read, without a compression's.

    Raises:
        DataError: for a name that says nothing known.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            raise DataError(f"{path}: Parquet is compressed inside; unpack the file first")
    if suffixes and suffixes[-1] in SUFFIXES:
        return suffixes[-1]
    found = suffixes[-1] if suffixes else ""
    has = f"files ending in {found!r} are not known" if found else "the name has no ending that tells its type"
    raise DataError(f"{path}: {has}.{nearest(found, SUFFIXES)} Possible: {', '.join(SUFFIXES)}, also with .gz or .bz2")


def open_file(path: Path) -> BinaryIO:
    """To read bytes of, unpacked."""
    return cast(BinaryIO, _COMPRESSED.get(path.suffix.lower(), open)(path, "rb"))


class LongLineError(Exception):
    """A line above the bound; the file stands behind it."""


class Lines:
    """The lines of a file as bytes, bounded. Unlike a generator it goes on after a line that was too long."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.number = 0  # of the line that was given last, from 1
        self.start = 0  # its first byte in the file
        self._end = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self.file.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.start = self._end
        self._end += len(line)
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := self.file.readline(MAX_LINE)):
                self._end += len(line)
            raise LongLineError
        return line.removeprefix(BOM) if self.number == 1 else line

    def too_long(self) -> Problem:
        size = (self._end - self.start) / 2**20
        return Problem("line too long", f"the line holds {size:,.0f} MB, at most {MAX_LINE // 2**20} MB are read")
