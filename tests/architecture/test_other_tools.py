"""docs/other-tools.md says of each fact what holds Microplane to its side: a test that exists, or a step to come."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "other-tools.md"
STEPS = {"exports", "server", "compare", "devices"}


def rows() -> list[list[str]]:
    """The cells of every row, the last one first: what holds it."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row[::-1] for row in cells if row[-1] != "held by"]


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert len(named) > 20
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file() or f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert missing == []


def test_every_row_has_a_test_or_a_step():
    assert len(rows()) > 40
    for held, *others in rows():
        assert "::" in held or held in STEPS, others[-1]
        assert len(others) in (3, 4), others[-1]
