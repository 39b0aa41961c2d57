"""Rows of CSV and TSV files, and quotes that were left open."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from microplane.data.reading.bad_rows import Problem, RowError, show
from microplane.data.reading.lines import MAX_LINE, Lines, LongLineError, RawRow, file_type, open_file
from microplane.data.reading.values import is_number
from microplane.errors import DataError


def csv_rows(path: Path, lines: Lines) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_LINE)
    try:
        header, delimiter = _header(path, lines)
    except LongLineError:
        raise DataError(f"{path}: {lines.too_long().message}; expected the names of the columns") from None
    reader, swallowed = _cells(lines, path, delimiter), _Swallowed(path, header, delimiter)
    while True:
        line = lines.number + 1
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield RawRow(line, _named(cells, header), notice=swallowed.notice(cells) if lines.number > line else "")
        except LongLineError:
            yield RawRow(line, problem=lines.too_long())
            reader = _cells(lines, path, delimiter)  # the generator ended with the exception
        except csv.Error as error:
            yield RawRow(line, problem=Problem("broken CSV", f"{error}; is a quote left open, or a line end stray?"))
        except RowError as error:
            yield RawRow(line, problem=error.problem)


def _cells(lines: Lines, path: Path, delimiter: str) -> Iterator[list[str]]:
    """Rows as cells. In a .tsv file a quote is a character like any other, and cells hold neither tabs nor line ends
    (www.iana.org/assignments/media-types/text/tab-separated-values)."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if file_type(path) == ".tsv" else csv.QUOTE_MINIMAL
    return csv.reader(_texts(lines), delimiter=delimiter, strict=True, quoting=quoting)


MAX_VALUES, MAX_NAME = 10_000, 60  # different values of a column that are looked at, and their characters


class _Swallowed:
    """Finds rows of several lines that look like several rows, as they become where a quote is left open.

    What such a row would be if the quotes were no quotes has the cells of the header; and in some column besides that
    of the quoted cell nothing but values that rows of one line have there too, or numbers where these have.
    """

    def __init__(self, path: Path, header: Sequence[str], delimiter: str):
        self.path, self.header, self.delimiter = path, header, delimiter

    def notice(self, cells: list[str]) -> str:
        """What is to be said of a row of several lines, if anything."""
        at = next((number for number, cell in enumerate(cells) if "\n" in cell), 0)
        split = [line.split(self.delimiter) for line in cells[at].split("\n")]
        split[0][:0], split[-1][len(split[-1]) :] = cells[:at], cells[at + 1 :]
        if len(split) == 1 or any(len(row) != len(self.header) for row in split):
            return ""
        others = (column for column in range(len(self.header)) if column != at)
        if not any(_fit([row[column] for row in split], self.values[column]) for column in others):
            return ""
        return (
            f"a quoted cell of {len(split):,} lines looks like rows of this file: if a quote was left open, these rows "
            'are lost. A quote that belongs to the text is written twice ("")'
        )

    @cached_property
    def values(self) -> list[set[str]]:
        """Of each column, in rows of one line; long ones aside."""
        columns: list[set[str]] = [set() for _ in self.header]
        with open_file(self.path) as file, suppress(csv.Error, LongLineError):
            lines, line = Lines(file), 1
            next(lines, None)
            for cells in _cells(lines, self.path, self.delimiter):
                if lines.number == line + 1 and len(cells) == len(columns):
                    for values, cell in zip(columns, cells, strict=True):
                        if len(values) < MAX_VALUES and len(cell) < MAX_NAME:
                            values.add(cell.strip())
                line = lines.number
        return columns


def _fit(values: list[str], known: set[str]) -> bool:
    """Whether the values are such as a column has."""
    values = [value.strip() for value in values]
    if not all(values) or not known:
        return False
    return known.issuperset(values) or all(map(is_number, [*values, *known]))


def _texts(lines: Lines) -> Iterator[str]:
    """Lines as text. Bytes that are not UTF-8 become lone surrogates, which the row's check finds."""
    for line in lines:
        yield line.decode(errors="surrogateescape")


def _header(path: Path, lines: Lines) -> tuple[list[str], str]:
    """The columns' names and the character between them: a tab in .tsv, else the first of `,` `;` tab that occurs."""
    first = next((line for line in _texts(lines) if line.strip()), "")
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    if file_type(path) == ".tsv":
        delimiter = "\t"
        if first.startswith('"'):
            raise DataError(
                f"{path}: the names of the columns stand in quotes, and in a .tsv file a quote is a character like any "
                "other. If all cells are quoted so, name the file .csv; tabs between the cells are recognised"
            )
    try:
        header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error as error:
        raise DataError(f"{path}: the header is broken ({error})") from None
    named = [name for name in header if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if not named or twice:
        what = f"names {twice[0]!r} twice" if twice else "names no column"
        raise DataError(f"{path}: the first line {what}; it must name each column once")
    return header, delimiter


def _named(cells: list[str], header: list[str]) -> dict[str, Any]:
    for cell in cells:
        if not cell.isascii() and (bad := re.search("[\udc80-\udcff]", cell)):
            byte = ord(bad[0]) - 0xDC00
            raise RowError("invalid UTF-8", f"a cell holds the byte 0x{byte:02x}, expected UTF-8 text: {show(cell)}")
    if len(cells) != len(header):
        near = f"; it begins with {show(cells[0])}"
        raise RowError("ragged row", f"the row has {len(cells)} cells, expected {len(header)} as in the header{near}")
    return {name: cell for name, cell in zip(header, cells, strict=True) if name}
