"""What the documentation site makes of the sources: the list of knobs, and every message that users can be told.

A page asks for it by a comment: <!-- knobs -->, <!-- messages -->. MkDocs calls `on_page_markdown` (mkdocs.yml, hooks).
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from microplane.cli.lists import every_knob, shown_default
from microplane.config.build import fields, type_name
from microplane.methods import METHODS

SOURCES = Path(__file__).parents[1] / "src" / "microplane"


def on_page_markdown(markdown: str, **_: Any) -> str:
    for mark, make in (("<!-- knobs -->", knobs), ("<!-- messages -->", messages)):
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def knobs() -> str:
    """A table for each section, and one for each method."""
    sections: dict[str, list[str]] = {}
    for name, field in every_knob():
        if name != "method":
            default = "must be given" if field.is_required() else f"`{shown_default(field.default)}`"
            sections.setdefault(name.split(".")[0] if "." in name else "run", []).append(_row(name, field, default))
    for name, method in METHODS.items():
        rows = [_row(f"method.{knob}", one, f"`{shown_default(one.default)}`") for knob, one in fields(method)]
        sections[f"method.name={name}"] = rows
    head = "| knob | default | values | what it does |\n|---|---|---|---|\n"
    return "\n".join(f"## {section}\n\n{head}{''.join(rows)}" for section, rows in sections.items() if rows)


def _row(name: str, field: Any, default: str) -> str:
    cells = [f"`{name}`", default, type_name(field), field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |\n"


def messages() -> str:
    """By the room that says them; what is filled in stands as an ellipsis."""
    rooms: dict[str, dict[str, None]] = {}
    for file in sorted(SOURCES.rglob("*.py")):
        room = file.relative_to(SOURCES).parts[0].removesuffix(".py").replace("__init__", "microplane")
        for text in messages_of(file.read_text(encoding="utf-8")):
            rooms.setdefault(room, {})[text] = None
    return "\n".join(
        f"### {room}\n\n" + "".join(f"- {_escaped(text)}\n" for text in found) for room, found in rooms.items() if found
    )


def messages_of(source: str) -> Iterator[str]:
    """The texts of the errors that a file raises; those that are made elsewhere are not seen."""
    raised = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    for node in sorted(raised, key=lambda node: node.lineno):
        if isinstance(call := node.exc, ast.Call) and call.args:
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name.endswith("Error") and not hasattr(builtins, name) and (text := _text(call.args[0])).strip(" .…"):
                yield " ".join(text.split())


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "*_<>[]`#|{}" else letter for letter in text)
