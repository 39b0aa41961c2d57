"""Imports go down only, files stay small, and nothing is recognised by a part of its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "microplane"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = [  # from the ground up; what stands on one floor does not know of each other
    {"errors"},
    {"files", "config", "hardware", "device"},
    {"cache"},
    {"nn"},
    {"models", "cpu_memory"},  # which is compiled as the operations of nn are
    {"data"},
    {"methods", "objectives", "report"},  # report reads a run's files and nothing else
    {"checkpoints"},
    {"inference", "training"},
    {"evaluation"},
    {"adapters"},
    {"exports"},
    {"forecast"},
    {"runs"},
    {"serving"},
    {"comparison"},
    {"planning"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
TOP_LEVEL = {"__init__", "__main__", "device", "errors", "files", "hardware"}  # and packages


def module_of(path: Path) -> str:
    """The dotted name below microplane."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path):
    """Modules of ours that a file imports, those imported for types alone and inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "microplane":
            module = node.module.removeprefix("microplane").removeprefix(".")
            below = [f"{module}.{alias.name}".removeprefix(".") for alias in node.names]
            yield from {name if name in MODULES else module for name in below}
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("microplane.") for a in node.names if a.name.startswith("microplane."))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Sets of more than one module that reach each other (Tarjan's strongly connected components)."""
    found, stack, index, low = [], [], {}, {}

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(arrows):
        if name not in index:
            visit(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    own = room(path)
    if own == "__init__":
        return
    for module in imports(path):
        other = module.split(".")[0]
        assert other == own or FLOOR[other] < FLOOR[own], (
            f"{own} (floor {FLOOR[own]}) imports {module} (floor {FLOOR[other]})"
        )


def test_no_modules_import_each_other_in_a_circle():
    arrows = {name: set(imports(path)) for name, path in MODULES.items() if name != "__init__"}
    assert circles(arrows) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def test_the_top_level_holds_what_all_need_and_folders():
    assert {path.stem for path in SOURCE.glob("*.py")} == TOP_LEVEL


def test_only_the_registry_knows_concrete_methods():
    shared = {"methods", "methods.method", "methods.adapted_linear", "methods.disable", "methods.base_format"}
    shared |= {"methods.peft_format", "methods.targets"}
    for path in FILES:
        if room(path) != "methods":
            concrete = [m for m in imports(path) if m.split(".")[0] == "methods" and m not in shared]
            assert not concrete, f"{path}: {concrete}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_is_one_idea(path):
    assert len(path.read_text().splitlines()) <= 400


def test_most_files_are_short():
    lengths = sorted(lines for path in FILES if (lines := len(path.read_text().splitlines())))
    assert lengths[len(lengths) // 2] <= 150


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_functions_stay_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= (90 if node.name == "fit" else 60), f"{node.name} has {lines} lines"


def test_nothing_is_recognised_by_a_part_of_its_name():
    for path in FILES:
        assert not re.search(r"""["'](lora|adapter|bias)\w*["'] in \w*name""", path.read_text()), path


def test_nothing_is_pickled_and_no_remote_code_runs():
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"torch\.(load|save)\(|import pickle|trust_remote_code=True", text), path
