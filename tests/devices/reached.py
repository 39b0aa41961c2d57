"""Which functions of the models compute on the pretended device at all: only those can be found to make a tensor apart.

    python -m tests.devices.reached      prints a JSON list of the functions that none of the cases ran

Backward passes run in a thread of torch's own, which is not followed; a case's gradients are compared instead.
"""

from __future__ import annotations

import ast
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.devices import matrix, pretend  # the matrix first: it says by what operations is computed
from tests.devices.cases import Case, cases

TENSORS = ("Tensor", "Rows", "Pairs", "torch.")  # in what a function takes, gives or calls
FOLDERS = ("models/files/", "models/configs/")  # read on the CPU, before there is a device


def chosen() -> Iterator[Case]:
    """Every family and head with LoRA, and what goes by other functions."""
    for case in cases():
        name, special = case.method["name"], case.train or case.quantised or len(case.method) > 1
        plain = name == "lora" and (case.longest or not special)
        kept = case.family in ("llama-tied", "bert", "ernie") and name in ("last-n", "head-only", "prompt", "prefix")
        if plain or kept:
            yield case


def _does_something(function: ast.FunctionDef) -> bool:
    """Not only a description, or an error."""
    return any(not isinstance(line, ast.Expr | ast.Raise | ast.Assert) for line in function.body)


def _of_tensors(function: ast.FunctionDef) -> bool:
    return any(word in ast.unparse(function) for word in TENSORS)


def of_tensors() -> dict[tuple[str, int], str]:
    """The functions of models/ that have to do with tensors: (file, first line) -> file and name."""
    found = {}
    for path in sorted((Path(pretend.SOURCE) / "models").rglob("*.py")):
        place = path.relative_to(pretend.SOURCE).as_posix()
        if place.startswith(FOLDERS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and _does_something(node) and _of_tensors(node):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found[place, first] = f"{place} {node.name}"
    return found


def main() -> None:
    device, wanted = pretend.register(), of_tensors()
    reached: set[tuple[str, int]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(pretend.SOURCE):
            reached.add((code.co_filename[len(pretend.SOURCE) + 1 :], code.co_firstlineno))

    for case in chosen():
        with tempfile.TemporaryDirectory() as folder:
            sys.setprofile(note)
            try:
                matrix.run(case, device, Path(folder))
            finally:
                sys.setprofile(None)
    json.dump(sorted(wanted[key] for key in wanted.keys() - reached), sys.stdout)


if __name__ == "__main__":
    main()
