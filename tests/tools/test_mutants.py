"""Deliberate bugs find their places, also in code that was moved, formatted or renamed; what is gone is told."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools import mutants
from tools.places import Bug, PlaceError, Sources

SOURCE = """
class Layer:
    def forward(self, x):
        if self.scale:  # a comment
            return self.base(x) + self.scale * (self.up @ self.down)
        self.seen(x)
        return self.base(x)

KINDS = {"a": 1, "b": 2}

def other(x):
    return x.up @ x.down
"""
BUG = Bug("Layer.forward", "self.scale * (self.up @ self.down)", "self.up @ self.down")


def changed(folder: Path, source: str, bug: Bug, name: str = "a.py") -> str:
    """The source with the bug, formatted as Python's own printer does."""
    (folder / name).write_text(source)
    return Sources(folder).change(bug).text


def plain(source: str) -> str:
    return ast.unparse(ast.parse(source)) + "\n"


def test_every_description_has_its_place_and_its_tests():
    assert list(mutants.lost(mutants.mutants())) == []


def test_an_expression_is_put_in_place_of_another(tmp_path):
    expected = SOURCE.replace("self.scale * (self.up @ self.down)", "(self.up @ self.down)")
    assert changed(tmp_path, SOURCE, BUG) == plain(expected)


def test_statements_are_put_in_place_of_others(tmp_path):
    bug = Bug("Layer.forward", "self.seen(x)\nreturn self.base(x)", "return self.base(x)\nself.seen(x)")
    expected = SOURCE.replace("self.seen(x)\n        return self.base(x)", "return self.base(x)\n        self.seen(x)")
    assert changed(tmp_path, SOURCE, bug) == plain(expected)


def test_a_statement_is_taken_out(tmp_path):
    expected = SOURCE.replace("self.seen(x)", "pass")
    assert changed(tmp_path, SOURCE, Bug("Layer.forward", "self.seen(x)", "pass")) == plain(expected)


def test_a_constant_is_a_definition(tmp_path):
    assert changed(tmp_path, SOURCE, Bug("KINDS", "{'a': 1, 'b': 2}", "{}")) == plain(
        SOURCE.replace('{"a": 1, "b": 2}', "{}")
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "self.base(x) + self.scale * (self.up @ self.down)",
            "(\n  self.base(x)\n  + self.scale*(self.up@self.down) )",
        ),
        ("scale", "factor"),  # an attribute has another name, everywhere
        ("down", "lora_A"),
        ("class Layer", "class Linear"),  # the definition itself: the code is nowhere else
        ("def forward", "def apply"),
    ],
)
def test_formatting_and_renaming_lose_no_place(tmp_path, old, new):
    source = SOURCE.replace(old, new)
    text = changed(tmp_path, source, BUG, "moved.py")
    names = (new, "down") if old == "scale" else ("scale", new) if old == "down" else ("scale", "down")
    before, after = "self.{} * (self.up @ self.{})".format(*names), f"(self.up @ self.{names[1]})"
    assert text == plain(plain(source).replace(before, after))


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (Bug("Layer.forward", "self.base(x)", "x"), "this code of Layer.forward is 2 times in it: self.base(x)"),
        (Bug("Layer.forward", "self.base(y, 1)", "y"), "this code of Layer.forward is nowhere: self.base(y, 1)"),
        (Bug("Gone.forward", "self.base(x)", "x"), "this code of Gone.forward is 2 times elsewhere: self.base(x)"),
        (Bug("Gone.forward", "self.never(x)", "x"), "is nowhere, and there is no such definition: self.never(x)"),
        (Bug("Layer.forward", "self.up * self.down", "0"), "is nowhere"),  # another operator
        (Bug("KINDS", "{'a': 1, 'b': 3}", "{}"), "is nowhere"),  # another number
        (Bug("other", "y.A @ y.B", "y.A"), "is nowhere"),  # nothing but the structure is left
    ],
)
def test_a_place_that_is_gone_or_doubtful_is_an_error(tmp_path, bug, message):
    with pytest.raises(PlaceError) as error:
        changed(tmp_path, SOURCE, bug)
    assert message in str(error.value)


def test_a_definition_and_a_name_in_it_may_both_be_renamed(tmp_path):
    source = SOURCE.replace("class Layer", "class Linear").replace("scale", "factor")
    text = changed(tmp_path, source, BUG)
    assert text == plain(source.replace("self.factor * (self.up @ self.down)", "(self.up @ self.down)"))
    twice = source.replace("down", "lora_A")
    with pytest.raises(PlaceError):
        changed(tmp_path, twice, BUG)


CPP = """
template <typename T>
void scale(const T *x, T *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        to[i] = x[i] * 2.0f;
    }
}
void other(T *to) { to[i] = x[i] * 2.0f; }
"""


def test_a_place_in_cpp_is_text_within_a_function(tmp_path):
    bug = Bug("scale", "to[i]=x[i] * 2.0f", "to[i] = x[i]", "c++")
    expected = CPP.replace("to[i] = x[i] * 2.0f", "to[i] = x[i]", 1)
    assert changed(tmp_path, CPP, bug, "a.cpp") == expected
    assert changed(tmp_path, CPP.replace(" = x[i] *", "\n =\n x[i]  *", 1), bug, "a.cpp") == expected


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (Bug("gone", "x", "y", "c++"), "its code is 0 times in C++, and there is no function gone: x"),
        (Bug("scale", "i", "j", "c++"), "its code is"),
        (Bug("scale", "z[i]", "j", "c++"), "its code is 0 times in scale: z[i]"),
    ],
)
def test_a_place_in_cpp_that_is_gone_is_an_error(tmp_path, bug, message):
    with pytest.raises(PlaceError) as error:
        changed(tmp_path, CPP, bug, "a.cpp")
    assert message in str(error.value)


def test_a_test_that_is_gone_is_told():
    bug = mutants.mutants()[0].bug
    tests = ("tests/gone.py", "tests/tools/test_mutants.py::test_gone", "tests/tools/test_mutants.py::test_gone[a]")
    there = ("tests/tools/test_mutants.py", "tests/tools/test_mutants.py::test_a_test_that_is_gone_is_told")
    told = list(mutants.lost([mutants.Mutant("w", bug, tests + there)]))
    assert told == [f"{bug.within}: w: there is no test {test}" for test in tests]


def test_samples_of_following_days_are_all_bugs():
    every = mutants.mutants()
    days = -(-len(every) // 12)
    seen = [str(mutant) for day in range(20_000, 20_000 + days) for mutant in mutants.sample(every, 12, day)]
    assert len(set(seen)) == len({str(mutant) for mutant in every})
    assert mutants.sample(every, 12, 7) == mutants.sample(every, 12, 7)
    assert len(mutants.sample(every, 10_000, 7)) == len(every)


def test_a_bug_is_caught_or_not(tmp_path, monkeypatch):
    """The whole tool, on a package of one line."""
    for path, text in {
        "src/microplane/__init__.py": "",
        "src/microplane/a.py": "def double(x):\n    return 2 * x\n",
        "tests/test_a.py": "import random\nfrom microplane.a import double\n\n"
        "def file(size):\n    return {'file': random.Random(size).randbytes(size)}\n\n"
        "def test_double():\n    assert file(double(2)) == file(4)\n    assert file(double(30000)) == file(60000)\n",
        "examples/a.txt": "",
        "pyproject.toml": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "tools").mkdir()
    tool = Path(mutants.__file__).parent
    for name in ("mutants.py", "places.py"):
        (tmp_path / "tools" / name).write_text((tool / name).read_text().replace("import peft", "import json"))
    entry = '{"what": "%s", "within": "double", "old": "2 * x", "new": "%s", "tests": ["tests/test_a.py"]}'
    (tmp_path / "tools" / "mutants").mkdir()
    lists = tmp_path / "tools" / "mutants" / "a.json"

    def run(*entries: str) -> tuple[int, str]:
        lists.write_text(f"[{', '.join(entries)}]")
        command = [sys.executable, str(tmp_path / "tools" / "mutants.py")]
        env = {
            "PATH": "",
            "CI": "true",
        }  # where pytest lists all letters of two files that differ, unless it is told not to
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60)
        return done.returncode, done.stdout

    assert run(entry % ("three", "3 * x")) == (0, "caught: double: three\n1 of 1 caught\n")
    assert run(entry % ("long", "x * 2 + (x > 2)")) == (0, "caught: double: long\n1 of 1 caught\n")
    assert run(entry % ("sum", "x + x")) == (1, "NOT CAUGHT: double: sum\n0 of 1 caught\n")
    code, told = run((entry % ("gone", "3 * x")).replace("2 * x", "4 * x"))
    assert (code, told.splitlines()[-1]) == (1, "1 descriptions to be mended")
