"""What is wrong with rows: one complaint each, collected over a whole file before anything is refused."""

from __future__ import annotations

import reprlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from microplane.errors import DataError

LISTED = 20  # complaints shown in full; the rest is counted by kind

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlist = _REPR.maxdict = 3
_REPR.maxlong = 25


@dataclass(frozen=True)
class Problem:
    """Why one row cannot be used: a kind to count by, and a sentence with the key, the value and what was expected."""

    kind: str
    message: str


class RowError(Exception):
    """Raised while one row is looked at; its reader turns it into a complaint. Never leaves this package."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.problem = Problem(kind, message)


class NoLabel(Exception):  # noqa: N818 - nothing is wrong with such a row
    """Raised for a row that says of itself that it has no label: it is left out, and counted apart from bad rows."""


def show(value: Any) -> str:
    """A value as a sentence can hold it, shortened: `null`, `the number 3`, `the text 'abc'`, `a list [1, 2]`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {_REPR.repr(value)}"
    if isinstance(value, str):
        return f"the text {_REPR.repr(value)}"
    if isinstance(value, list):
        return f"a list {_REPR.repr(value)}"
    if isinstance(value, dict):
        return f"an object {_REPR.repr(value)}"
    return f"a value of type {type(value).__name__}"


@dataclass
class Problems:
    """The bad rows of the files of one split."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)  # the first of rows that are read and may not be what was meant

    def add(self, where: str, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        if len(self.first) < LISTED:
            self.first.append(f"{where}: {problem.message}")

    def notice(self, where: str, text: str) -> None:
        if len(self.notices) < LISTED:
            self.notices.append(f"{where}: {text}")

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """The first complaints, and how many more there are of which kind."""
        lines = [f"  {line}" for line in self.first]
        if self.total > len(self.first):
            lines.append(f"  and {self.total - len(self.first):,} more")
        if self.total > 1:
            kinds = ", ".join(f"{count:,} x {kind}" for kind, count in self.counts.most_common())
            lines.append(f"In all: {kinds}.")
        return lines

    def error(self, name: str, rows: int, more: bool = False) -> DataError:
        """One error for all bad rows; `rows` counts good and bad ones.

        Args:
            more: whether there may be others, as not all rows were looked at.
        """
        head = f"{name}: {'at least ' if more else ''}{self.total:,} of {rows:,} rows cannot be used:"
        tail = "Correct them, or leave them out with --skip-bad-rows."
        return DataError("\n".join([head, *self.lines(), tail]))
