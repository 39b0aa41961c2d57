"""Classes of a Parquet file by their names: the package `datasets` stores numbers, and the names beside the columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from microplane.data.reading.bad_rows import RowError
from microplane.models.configs.head import IGNORED

KEY = b"huggingface"  # where `datasets` keeps in a file what its columns are
LISTS = ("List", "LargeList", "Sequence")
ByName = Callable[[Any], Any]


def class_columns(metadata: Mapping[bytes, bytes] | None) -> dict[str, ByName]:
    """The columns with classes in them, each with what gives a value of it by names; it raises RowError for a number
    that has none.

    Each split's numbers are its own: `class_encode_column` counts the labels that are there, so that without the names
    a number means another label in each file. A -1, as these files say that a row has none, becomes `data.no_label`.

    Args:
        metadata: of the file's schema (pyarrow.Schema.metadata).
    """
    try:
        found = {str(name): _by_name(feature, str(name)) for name, feature in _features(metadata).items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # no file of that package
        return {}
    return {name: by_name for name, by_name in found.items() if by_name}


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """The columns that are classes, or lists of them, each with their names in the order of their numbers."""
    try:
        inner = {name: _item(feature) for name, feature in _features(metadata).items()}
        return {
            str(name): tuple(map(str, feature["names"]))
            for name, feature in inner.items()
            if feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # no file of that package
        return {}


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """What the package says of each column. Any error, of a file that it did not write."""
    found: dict[str, Any] = json.loads((metadata or {}).get(KEY, b"{}"))["info"]["features"]
    return found


def _item(feature: Any) -> Any:
    """Of a list what is in it, however the list is written."""
    if isinstance(feature, list):
        return feature[0] if feature else {}
    return feature["feature"] if feature.get("_type") in LISTS else feature


def _by_name(feature: Any, column: str) -> ByName | None:
    """Of a column, or of what is in it: a class, a list or an object. None where no class is in it."""
    if isinstance(feature, list):
        return _listed(_by_name(feature[0], column)) if feature else None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        return _class(feature.get("names"), column)
    if kind in LISTS:
        item = feature.get("feature")
        together = kind == "Sequence" and isinstance(item, dict) and not isinstance(item.get("_type"), str)
        return _inside(item, column, _listed) if together else _listed(_by_name(item, column))
    if not isinstance(kind, str):
        return _inside(feature, column, lambda by_name: by_name)
    return None


def _class(names: Any, column: str) -> ByName | None:
    if not names:
        return None

    def named(number: Any) -> Any:
        if not isinstance(number, int):
            return number
        if number >= len(names):
            raise RowError(
                "class without a name", f"key {column!r} is {number}, and the file names {len(names)} classes"
            )
        return names[number] if number >= 0 else IGNORED

    return named


def _listed(by_name: ByName | None) -> ByName | None:
    if by_name is None:
        return None
    return lambda values: [by_name(value) for value in values] if isinstance(values, list) else values


def _inside(features: Mapping[str, Any], column: str, each: Callable[[ByName | None], ByName | None]) -> ByName | None:
    """Of an object by its keys; `each` says how the value of a key holds what its feature describes."""
    inner = {key: found for key, one in features.items() if (found := each(_by_name(one, f"{column}.{key}")))}
    if not inner:
        return None

    def named(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: inner[key](one) if key in inner else one for key, one in value.items()}

    return named
