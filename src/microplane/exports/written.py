"""What writing a format gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from microplane.exports.compare import Comparison


@dataclass(frozen=True)
class Written:
    files: tuple[str, ...]  # the main one first
    notices: tuple[str, ...] = ()  # what is otherwise there, and what to do about it
    checked: tuple[Comparison, ...] = ()
    how: tuple[str, ...] = ()  # lines that show how to use it
    facts: dict[str, object] = field(default_factory=dict)  # what else export.json says

    def lines(self) -> Iterator[str]:
        yield from (line for one in self.checked for line in one.lines())
        yield from self.notices
        yield from self.how
