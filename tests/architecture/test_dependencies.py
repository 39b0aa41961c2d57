"""What is declared in pyproject.toml is what the package imports: nothing more, nothing less."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from microplane.exports.formats import FORMATS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = {
    "compare",
    "hub",
    "parquet",
    "ray",
    "serve",
    "suites",
    "transformers",
    "vi",
}  # extras of users; the others are for work on the package
# imported by their names where they are installed; torch itself writes with onnx
ENGINES = {one.package for one in FORMATS.values() if one.package} | {"onnx", "datasets"}
OPTIONAL |= {one.extra for one in FORMATS.values() if one.extra}
CARRIED = {"chartkick"}  # only its files are read, and they are no Python


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}


def imported(folder: Path) -> set[str]:
    """Distributions whose modules the package imports, wherever in a file it does so."""
    modules = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add((node.module or "").split(".")[0])
    owners = metadata.packages_distributions()
    ours = sys.stdlib_module_names | {"microplane"}
    return {normal(owners[module][0]) if module in owners else normal(module) for module in modules - ours}


def test_every_package_that_is_imported_is_declared_and_every_declared_one_is_used():
    extras = set().union(*(declared(PROJECT["optional-dependencies"][extra]) for extra in OPTIONAL))
    assert imported(ROOT / "src") | CARRIED | ENGINES == declared(PROJECT["dependencies"]) | extras


def test_the_decision_has_a_line_for_every_dependency():
    text = (ROOT / "docs" / "decisions" / "0012-dependencies.md").read_text()
    extras = set().union(*(declared(PROJECT["optional-dependencies"][extra]) for extra in OPTIONAL))
    rows = {normal(name) for name in re.findall(r"^\| `([\w.-]+)`", text, re.MULTILINE)}
    assert declared(PROJECT["dependencies"]) | extras <= rows


def test_packages_of_tests_are_pinned():
    pins = {normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert set().union(*map(declared, groups)) - {"microplane"} <= pins
