"""Which cases of a parametrised test are run every time, and which by `make test-all` alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """All cases; those that are not among `fast` are slow. A tuple is a case of several parameters."""
    found = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=() if case in fast else pytest.mark.slow))
    assert any(not case.marks for case in found), "none of them is run every time"
    return found
