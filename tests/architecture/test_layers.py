"""Imports go down only, files stay small, and nothing is recognised by a part of its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "microplane"
FILES = sorted(SOURCE.rglob("*.py"))
LEVELS = [
    {"errors", "paths", "config", "watch", "environment", "gguf_file", "yaml_text"},
    {"nn"},
    {"models", "methods", "data"},  # siblings; methods may read models.contract
    {"training", "generate", "predict", "report"},  # report reads a run's files and nothing else
    {"loading", "result", "tasks"},
    {"run", "measure", "merging", "converting", "attaching"},
    {"chat", "console", "demo"},
    {"cli", "cli_adapter", "cli_embed", "cli_mixture"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
SIBLINGS = {("methods", "models.contract")}


def imports(path: Path):
    """Modules of ours that a file imports outside `if TYPE_CHECKING`, as dotted names below microplane."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("microplane"):
            module = node.module.removeprefix("microplane").removeprefix(".")
            yield from [module] if module else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("microplane.") for a in node.names if a.name.startswith("microplane."))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    own = room(path)
    if own == "__init__":
        return
    for module in imports(path):
        other = module.split(".")[0]
        allowed = other == own or LEVEL[other] < LEVEL[own] or (own, module) in SIBLINGS
        same_floor = LEVEL[other] == LEVEL[own] and LEVEL[own] not in (1, 2)
        assert allowed or same_floor, f"{own} (level {LEVEL[own]}) imports {module} (level {LEVEL[other]})"


def test_only_the_registry_knows_concrete_methods():
    for path in FILES:
        if room(path) != "methods":
            concrete = [
                m for m in imports(path) if m.startswith("methods.") and m not in ("methods.method", "methods.kinds")
            ]
            assert not concrete, f"{path}: {concrete}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_is_one_idea(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_functions_stay_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.body[0].lineno + 1
            assert lines <= 80, f"{node.name} has {lines} lines"


def test_nothing_is_recognised_by_a_part_of_its_name():
    for path in FILES:
        assert not re.search(r"""["'](lora|adapter|bias)\w*["'] in \w*name""", path.read_text()), path


def test_nothing_is_pickled_and_no_remote_code_runs():
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"torch\.(load|save)\(|import pickle|trust_remote_code=True", text), path
