"""Deliberate bugs, each of which some test must catch: `make mutants`, or `tools/mutants.py WORD...` for some of them.

Each is applied to a temporary copy of src/ and the few tests named with it are run on that copy. A bug that no test
catches is reported, and so is one whose text is no longer in the source. `tools/mutants/*.json` holds them: file
(below src/microplane), old and new text, tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import peft  # noqa: F401 - loaded once, for the tests in all forks
import pytest

ROOT = Path(__file__).resolve().parents[1]
LISTS = ROOT / "tools" / "mutants"
SECONDS = 600  # for one run of pytest

os.environ["OMP_NUM_THREADS"] = "1"
sys.dont_write_bytecode = True  # or a bug put in and taken out within a second would stay


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str
    old: str
    new: str
    tests: list[str]


def mutants() -> list[Mutant]:
    return [Mutant(**entry) for path in sorted(LISTS.glob("*.json")) for entry in json.loads(path.read_text())]


def failure(mutant: Mutant, copy: Path) -> str | None:
    """What is wrong with a mutant: nothing if its tests fail, as they should."""
    path = copy / "src" / "microplane" / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        return f"its text is {source.count(mutant.old)} times in {mutant.file}"
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        code, told = run(mutant.tests, copy)
    finally:
        path.write_text(source)
    if code == 1:  # pytest: some tests failed; other numbers mean that they were not run
        return None
    return "NOT CAUGHT" if code == 0 else f"its tests could not be run (exit code {code}): {told}"


def run(tests: list[str], copy: Path) -> tuple[int, str]:
    """(pytest's exit code, the end of what it printed), in a fork of this process, which has torch loaded already."""
    log = copy / "log"
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)  # a bug may well be an endless loop
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(copy)
        sys.path[:0] = [str(copy / "src"), str(copy)]
        os._exit(pytest.main(["-x", "-q", "-p", "no:randomly", *tests]))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text()[-1500:]


def main(words: list[str]) -> int:
    chosen = [m for m in mutants() if not words or any(w in f"{m.what} {m.file}" for w in words)]
    if not chosen:
        print("no mutant has one of these words in its description or file")
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for name in ("src", "tests", "examples"):
            made = ("__pycache__", *(["data"] if name == "examples" else []))  # by running them; it can be gigabytes
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*made))
        shutil.copy(ROOT / "pyproject.toml", copy)
        every = sorted({test for mutant in chosen for test in mutant.tests})
        code, told = run(every, copy)
        if code != 0:
            print(f"the tests fail without any bug:\n{told}")
            return 1
        failed = 0
        for mutant in chosen:
            wrong = failure(mutant, copy)
            failed += wrong is not None
            print(f"{wrong or 'caught'}: {mutant.file}: {mutant.what}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} caught")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
