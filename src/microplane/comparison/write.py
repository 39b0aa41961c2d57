"""A comparison's files."""

from __future__ import annotations

from pathlib import Path

from microplane.comparison.output import Result, comma_separated, markdown
from microplane.comparison.page import render
from microplane.files import json_value, write_aside, write_json


def write_outputs(folder: Path, result: Result) -> None:
    """comparison.json, comparison.md, comparison.csv and comparison.html."""
    write_json(folder / "comparison.json", json_value(dict(result)))
    write_aside(folder / "comparison.md", markdown(result).encode("utf-8", "replace"))
    write_aside(folder / "comparison.csv", comma_separated(result).encode("utf-8", "replace"))
    write_aside(folder / "comparison.html", render(result).encode("utf-8", "replace"))
