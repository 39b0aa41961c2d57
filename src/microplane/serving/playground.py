"""The page at `/`: one file, nothing from elsewhere, in the report's style."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from microplane.files import json_lines

HERE = Path(__file__).parent
REPORT = HERE.parent / "report"
MOST_ROWS = 200  # of a run's held-out rows


class Page(NamedTuple):
    text: str
    policy: str  # its content security policy: its own style and script run, and nothing else


@cache
def page() -> Page:
    """The page, with its style and its script in it."""
    style = (REPORT / "page.css").read_text("utf-8") + (HERE / "playground.css").read_text("utf-8")
    script = (HERE / "playground.js").read_text("utf-8")
    text = (HERE / "playground.html").read_text("utf-8").replace("/* style */", style).replace("/* script */", script)
    allowed = f"style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; img-src data:"
    return Page(text, f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def held_out(folder: Path | None) -> list[dict[str, Any]]:
    """A run's held-out rows: prompt, target, and where each stands. A base or a bare adapter has none."""
    if folder is None:
        return []
    run = folder.parent if folder.name == "adapter" else folder
    try:
        rows = json_lines(run / "answers.jsonl", MOST_ROWS)
        return [{name: str(row.get(name, "")) for name in ("prompt", "target", "where")} for row in rows]
    except (OSError, ValueError, AttributeError):
        return []
