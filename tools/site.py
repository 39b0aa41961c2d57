"""What the documentation site makes of the sources: the list of knobs, and every message that users can be told.

A page asks for it by a comment: <!-- knobs -->, <!-- messages -->. MkDocs calls `on_page_markdown` (mkdocs.yml, hooks).
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping
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
    """The texts of the errors that a file makes, also of parts that were given a name in the same function. Of an error
    with several texts, as a kind and a sentence, the longest."""
    tree = ast.parse(source)
    for within in _functions(tree):
        known = _named_texts(within)
        for call in sorted(_own_calls(within), key=lambda node: node.lineno):
            text = " ".join(max((_text(part, known) for part in call.args), key=len, default="").split())
            if text.strip(" .…"):
                yield text


def _functions(tree: ast.Module) -> list[ast.AST]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sorted([tree, *found], key=lambda node: getattr(node, "lineno", 0))


def _own(within: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function or a module, but for that of functions inside."""
    for child in ast.iter_child_nodes(within):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _own(child)


def _own_calls(within: ast.AST) -> Iterator[ast.Call]:
    for node in _own(within):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name.endswith("Error") and not hasattr(builtins, name):
                yield node


def _named_texts(within: ast.AST) -> dict[str, ast.expr]:
    """By name, what was assigned to it last."""
    assigned = [node for node in _own(within) if isinstance(node, ast.Assign)]
    return {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}


def _text(node: ast.expr, known: Mapping[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "…"
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, known) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known) + _text(node.right, known)
    if isinstance(node, ast.IfExp):
        return _text(node.body, known)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known) if isinstance(node.value, ast.Name) else "…"
    if isinstance(node, ast.Name) and node.id in known:
        return _text(known[node.id], {name: value for name, value in known.items() if name != node.id})
    return "…"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "*_<>[]`#|{}" else letter for letter in text)
