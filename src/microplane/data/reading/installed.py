"""Formats of rows that installed packages add, in the group `microplane.formats`; `data.format` chooses one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from microplane.config.extensions import Registry
from microplane.data.reading.bad_rows import RowError
from microplane.data.reading.example import Example

ReadRow: TypeAlias = Callable[[Mapping[str, Any], str], Example]
"""The values of a row and its place ("file.jsonl:17") to an example. Raises `RowError` for a row that does not fit."""


@dataclass(frozen=True)
class InstalledFormat:
    """How the rows of a file are read, by a package's function; see `rendering.interface.RowFormat`."""

    name: str
    read: ReadRow
    keys: tuple[str, ...] = ()  # all columns: which of them the function reads is its own affair
    classes: tuple[str, ...] = ()  # none: labels are for task heads, which read by `LabelFormat`

    def __str__(self) -> str:
        return f"{self.name} (from the package {FORMATS.package_of(self.name)})"

    def example(self, values: Mapping[str, Any], where: str) -> Example:
        """Raises: RowError, for a row that does not fit the format, or that the function fails on."""
        try:
            example = self.read(values, where)
        except RowError:
            raise
        except Exception as error:  # whatever foreign code raises on a row
            raise RowError("not readable", f"{self} fails with {type(error).__name__}: {error}") from None
        if not isinstance(example, Example) or (example.messages is None) == (example.text is None):
            raise RowError("not readable", f"{self} gives no Example with either messages or text")
        return example


def _checked(name: str, found: object) -> ReadRow:
    """Raises: TypeError, if what a package calls a format cannot be called."""
    if not callable(found):
        raise TypeError("which is no function of a row's values and its place")
    return found


FORMATS: Registry[ReadRow] = Registry("microplane.formats", {}, _checked)
