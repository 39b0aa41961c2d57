"""Values of a row as text, or the complaint about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from microplane.data.reading.bad_rows import RowError, show


def listed(keys: Sequence[str]) -> str:
    """Keys as a message can hold them."""
    shown = ", ".join(repr(key[:40]) for key in keys[:12])
    return f"[{shown}{f' and {len(keys) - 12} more' if len(keys) > 12 else ''}]"


class PartOfRow(dict[str, Any]):
    """The columns of a row that are of use, of a file that has more: `columns` names all."""

    columns: Sequence[str] = ()


def get(values: Mapping[str, Any], key: str, expected: str) -> Any:
    if key not in values:
        there = values.columns if isinstance(values, PartOfRow) else list(values)
        raise RowError("missing key", f"key {key!r} is missing, expected {expected}; the row has {listed(there)}")
    return values[key]


def text(value: Any, place: str) -> str:
    if value is None:
        raise RowError("null", f"{place} is null, expected text")
    if not isinstance(value, str):
        raise RowError("not text", f"{place} is {show(value)}, expected text")
    return whole_text(value, place)


def whole_text(text: str, place: str) -> str:
    """The text itself.

    Raises:
        RowError: if half of a character stands in it (a lone surrogate), which no file can hold.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise RowError("broken text", f"{place} holds half a character ({half}), expected whole ones") from None
    return text


def filled_text(values: Mapping[str, Any], key: str, part: str) -> str:
    found = text(get(values, key, "text"), f"key {key!r}")
    if not found.strip():
        raise RowError(f"empty {part}", f"key {key!r} is {show(found)}, expected the {part}")
    return found


def optional_text(values: Mapping[str, Any], key: str) -> str:
    """An optional part: absent, null and blank all mean that there is none."""
    value = values.get(key)
    if value is None or value == "":
        return ""
    found = text(value, f"key {key!r}")
    return found if found.strip() else ""


def is_filled(value: Any) -> bool:
    """Whether there is anything: null, an empty list and a blank text are nothing."""
    return value is not None and value != [] and not (isinstance(value, str) and not value.strip())


def is_number(text: str) -> bool:
    """Whether a text is a number, as Python spells them."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_json(value: Any, opening: str = "[") -> Any:
    """The list that a text holds as JSON, as in a cell of a CSV file, or the object (`opening` is a brace then);
    anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(opening):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def truth(value: Any) -> bool | None:
    """Whether a value says true or false, also as 1 or 0, or as text; None for anything else."""
    if isinstance(value, str):
        value = {"true": 1, "false": 0}.get(value.strip().lower(), value.strip())
        value = float(value) if isinstance(value, str) and is_number(value) else value
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None
