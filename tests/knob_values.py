"""Values for tests that change a knob: another one than its default, from its own declaration."""

from __future__ import annotations

import operator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from microplane.config.build import choices

BOUNDS = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}


class NoValueError(LookupError):
    """The declaration does not say what else the knob could be: give it an entry in the test's table."""


def another(name: str, field: FieldInfo) -> Any:
    """A value that differs from the default and is within the bounds."""
    default = field.default
    if possible := choices(field):
        tried = [choice for choice in possible if choice != default]
    elif isinstance(default, bool):
        tried = [not default]
    elif isinstance(default, int):
        tried = [2 * default, default + 1, default - 1]
    elif isinstance(default, float):
        tried = [default / 2, default + 0.5, default + 1]
    elif default is None and int in get_args(field.annotation):
        tried = [1, *(bound.ge for bound in field.metadata if hasattr(bound, "ge"))]
    else:
        tried = []
    for value in tried:
        if value != default and within(value, field):
            return value
    raise NoValueError(f"{name}: {NoValueError.__doc__}")


def within(value: Any, field: FieldInfo) -> bool:
    limits = [(kind, getattr(bound, kind)) for bound in field.metadata for kind in BOUNDS if hasattr(bound, kind)]
    return all(BOUNDS[kind](value, limit) for kind, limit in limits)
