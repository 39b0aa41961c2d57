"""Where in the source a deliberate bug goes, described so that moving, formatting or renaming does not lose it.

In Python a place is code of the same structure within a definition of the given name, in whatever file that is; names
in it may have been changed, one for one. In C++ it is the same text, white space aside, within a function.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Names = dict[str, str]  # of the description -> of the source
IDENTIFIERS = {"id", "attr", "arg", "name"}  # fields of syntax trees that hold one
NO_MEANING = {"ctx", "kind", "type_comment"}  # fields that do not tell one piece of code from another
CPP_FUNCTION = re.compile(r"\b(\w+)\s*\([^;{}()]*(?:\([^;{}()]*\)[^;{}()]*)*\)\s*(?:const\s*)?\{")


class PlaceError(Exception):
    """A description fits no place, or several."""


@dataclass(frozen=True)
class Bug:
    """What to put in the place of what."""

    within: str  # a name with its classes' and functions': `LoRALinear.forward`; of C++ a function's name
    old: str
    new: str
    language: str = "python"  # or "c++"


@dataclass(frozen=True)
class Change:
    """A file with the bug in it."""

    path: Path
    text: str


@dataclass(frozen=True)
class _Found:
    """A place in a tree: some neighbours in a list, or one child."""

    parent: ast.AST
    field: str
    start: int | None  # in a list
    count: int
    names: Names

    def replace(self, new: list[ast.AST]) -> None:
        if self.start is None:
            setattr(self.parent, self.field, new[0])
        else:
            getattr(self.parent, self.field)[self.start : self.start + self.count] = new


class Sources:
    """The files below a folder, each parsed once."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def trees(self) -> dict[Path, ast.Module]:
        return {path: ast.parse(path.read_text()) for path in sorted(self.folder.rglob("*.py"))}

    @cached_property
    def definitions(self) -> dict[str, list[tuple[Path, ast.AST]]]:
        found: dict[str, list[tuple[Path, ast.AST]]] = {}
        for path, tree in self.trees.items():
            for name, node in named(tree):
                found.setdefault(name, []).append((path, node))
        return found

    @cached_property
    def cpp(self) -> dict[Path, str]:
        return {path: path.read_text() for path in sorted(self.folder.rglob("*")) if path.suffix in (".cpp", ".h")}

    def change(self, bug: Bug) -> Change:
        """The one file that a bug changes, and its text with the bug.

        Raises:
            PlaceError: if the place is gone, or is not the only one.
        """
        return self._change_cpp(bug) if bug.language == "c++" else self._change_python(bug)

    def check(self, bug: Bug) -> None:
        """Raises: PlaceError, as `change` does."""
        if bug.language == "c++":
            self._place_cpp(bug)
        else:
            self._place(bug, parsed(bug.old, bug.new)[0])

    def _change_python(self, bug: Bug) -> Change:
        old, new = parsed(bug.old, bug.new)
        path, found = self._place(bug, old)
        tree = self.trees[path]
        copy = deepcopy((tree, found))  # together, so that the place is one of the copied tree
        copy[1].replace([_renamed(node, found.names) for node in new])
        return Change(path, ast.unparse(ast.fix_missing_locations(copy[0])) + "\n")

    def _place(self, bug: Bug, old: list[ast.AST]) -> tuple[Path, _Found]:
        """In the definition, else in the one around it, else anywhere: as it is written, else with other names."""
        own, around = (self.definitions.get(name, []) for name in (bug.within, bug.within.rpartition(".")[0]))
        everywhere: list[tuple[Path, ast.AST]] = [*self.trees.items()]
        for roots, fits, where in (
            (own, as_written, "in it"),
            (own, half_renamed, "in it with other names"),
            (around, as_written, "around it"),
            (everywhere, as_written, "elsewhere"),
            (everywhere, once_renamed, "elsewhere with other names"),
        ):
            found = [(path, place) for path, root in roots for place in places(old, root) if fits(place.names)]
            if len(found) == 1:
                return found[0]
            if found:
                raise PlaceError(f"this code of {bug.within} is {len(found)} times {where}: {bug.old}")
        gone = "" if own else ", and there is no such definition"
        raise PlaceError(f"this code of {bug.within} is nowhere{gone}: {bug.old}")

    def _change_cpp(self, bug: Bug) -> Change:
        path, match = self._place_cpp(bug)
        text = self.cpp[path]
        return Change(path, text[: match.start()] + bug.new + text[match.end() :])

    def _place_cpp(self, bug: Bug) -> tuple[Path, re.Match[str]]:
        pattern = re.compile(r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", bug.old))))
        bodies = [(path, span) for path, text in self.cpp.items() for span in cpp_functions(text, bug.within)]
        found = [(path, match) for path, span in bodies for match in pattern.finditer(self.cpp[path], *span)]
        if len(found) != 1:
            where = f"in {bug.within}" if bodies else f"in C++, and there is no function {bug.within}"
            raise PlaceError(f"its code is {len(found)} times {where}: {bug.old}")
        return found[0]


def named(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Definitions below a node with their full names: classes, functions, and constants of files and classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from named(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(tree, ast.FunctionDef):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((prefix + target.id, node) for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.stmt) and not isinstance(tree, ast.FunctionDef):
            yield from named(node, prefix)  # below `if` and `with`


def parsed(old: str, new: str) -> tuple[list[ast.AST], list[ast.AST]]:
    """Both as one expression each, or both as statements."""
    both = [ast.parse(text).body for text in (old, new)]
    if all(len(body) == 1 and isinstance(body[0], ast.Expr) for body in both):
        return [both[0][0].value], [both[1][0].value]  # type: ignore[attr-defined]
    return [*both[0]], [*both[1]]


def as_written(names: Names) -> bool:
    return all(name == other for name, other in names.items())


def half_renamed(names: Names) -> bool:
    return sum(name != other for name, other in names.items()) <= len(names) / 2


def once_renamed(names: Names) -> bool:
    """One name of at least four is another: enough is left to be known anywhere."""
    return len(names) >= 4 and sum(name != other for name, other in names.items()) <= 1


def places(old: list[ast.AST], root: ast.AST) -> Iterator[_Found]:
    """Where code of this structure stands in a tree, whatever the names in it."""
    for parent in ast.walk(root):
        for field, value in ast.iter_fields(parent):
            for start, nodes in _runs(value, len(old)):
                names: Names = {}
                if all(same(a, b, names) for a, b in zip(old, nodes, strict=True)):
                    yield _Found(parent, field, start, len(old), names)


def _runs(value: object, count: int) -> Iterator[tuple[int | None, list[ast.AST]]]:
    if isinstance(value, list):
        yield from ((at, value[at : at + count]) for at in range(len(value) - count + 1))
    elif isinstance(value, ast.AST) and count == 1:
        yield None, [value]


def same(a: object, b: object, names: Names) -> bool:
    """Whether two pieces of code have one structure and the names of one can be put for those of the other."""
    if isinstance(a, ast.AST):
        fields = [field for field in a._fields if field not in NO_MEANING]
        return type(a) is type(b) and all(
            _same_name(getattr(a, field), getattr(b, field), names)
            if field in IDENTIFIERS
            else same(getattr(a, field, None), getattr(b, field, None), names)
            for field in fields
        )
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(same(x, y, names) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _same_name(a: object, b: object, names: Names) -> bool:
    if not isinstance(a, str) or not isinstance(b, str):  # `**options` is an argument without a name
        return a is b
    if a not in names and b in names.values():
        return False
    return names.setdefault(a, b) == b


def _renamed(node: ast.AST, names: Mapping[str, str]) -> ast.AST:
    node = deepcopy(node)
    for part in ast.walk(node):
        for field, value in ast.iter_fields(part):
            if field in IDENTIFIERS and isinstance(value, str):
                setattr(part, field, names.get(value, value))
    return node


def cpp_functions(text: str, name: str) -> Iterator[tuple[int, int]]:
    """The bodies of the functions of a name, as places in the text."""
    for match in CPP_FUNCTION.finditer(text):
        if match[1] == name:
            yield match.end(), closing(text, match.end())


def closing(text: str, start: int) -> int:
    """The place behind the brace that closes the one before `start`."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.end()
    return len(text)
