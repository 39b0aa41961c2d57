"""Deliberate bugs, each of which some test must catch: `make mutants`, or `tools/mutants.py WORD...` for some of them.

Each is put into a temporary copy of src/ and the few tests named with it are run on that copy. A bug that no test
catches is reported. Before anything is run, so is every bug whose place or test is no longer there, also of those that
were not asked for. `tools/mutants/*.json` holds them: the definition that it is put into, old and new code, tests.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.places import Bug, Change, PlaceError, Sources, named  # noqa: E402

LISTS = ROOT / "tools" / "mutants"
PACKAGE = Path("src", "microplane")
SECONDS = 600  # for one run of pytest


@dataclass(frozen=True)
class Mutant:
    what: str
    bug: Bug
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.bug.within}: {self.what}"


def mutants() -> list[Mutant]:
    entries = [entry for path in sorted(LISTS.glob("*.json")) for entry in json.loads(path.read_text())]
    return [Mutant(entry.pop("what"), tests=tuple(entry.pop("tests")), bug=Bug(**entry)) for entry in entries]


def lost(every: list[Mutant], root: Path = ROOT) -> Iterator[str]:
    """What is wrong with descriptions: places that are gone, tests that are gone."""
    sources = Sources(root / PACKAGE)
    for mutant in every:
        try:
            sources.check(mutant.bug)
        except PlaceError as error:
            yield f"{mutant}: {error}"
        for test in mutant.tests:
            if not _is_there(test, root):
                yield f"{mutant}: there is no test {test}"


def _is_there(test: str, root: Path) -> bool:
    """By file and function; whether it has the parameters, pytest says."""
    file, *names = test.split("[")[0].split("::")
    return (root / file).is_file() and (not names or ".".join(names) in _defined(root / file))


@cache
def _defined(path: Path) -> set[str]:
    return {name for name, _ in named(ast.parse(path.read_text()))}


def sample(every: list[Mutant], count: int, day: int) -> list[Mutant]:
    """`count` of all, others every day, until all have had their turn."""
    order = random.Random(0).sample(every, len(every))
    return [order[(day * count + place) % len(order)] for place in range(min(count, len(order)))]


class Copy:
    """The package and its tests in a folder of their own, into which bugs are put one after the other."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("src", "tests", "examples", "tools"):
            made = ("__pycache__", *(["data"] if name == "examples" else []))  # by running them; it can be gigabytes
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*made))
        shutil.copy(ROOT / "pyproject.toml", folder)
        self._log = folder / "log"
        self._original: tuple[Path, str] | None = None

    def start(self, tests: Iterable[str], change: Change | None = None) -> int:
        """Put a bug in, and run tests in a fork of this process, which has torch loaded already.

        Returns:
            The id of the process; its exit code is pytest's.
        """
        if change:
            path = self.folder / change.path.relative_to(ROOT)
            self._original = path, path.read_text()
            path.write_text(change.text)
        sys.stdout.flush()  # or both processes would print what waits
        child = os.fork()
        if child:
            return child
        signal.alarm(SECONDS)  # a bug may well be an endless loop
        with self._log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(self.folder)
        sys.path[:0] = [str(self.folder / "src"), str(self.folder)]
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # of processes that tests start
        code = pytest.main(["-x", "-q", "--assert=plain", "-p", "no:randomly", *tests])  # that they fail is enough
        sys.stdout.flush()
        os._exit(code)

    def end(self, code: int) -> str | None:
        """Take the bug out again: what is wrong, nothing if a test failed, as one should."""
        if self._original:
            path, text = self._original
            path.write_text(text)
            self._original = None
        if code == 1:  # pytest: some tests failed; other numbers mean that they were not run
            return None
        if code == 0:
            return "NOT CAUGHT"
        return f"its tests could not be run (exit code {code}): {self.told()}"

    def told(self) -> str:
        return self._log.read_text()[-1500:]


def tests_fail_without(chosen: list[Mutant], copy: Copy) -> bool:
    """Whether tests fail on the package as it is; then no bug is caught by them."""
    pid = copy.start(sorted({test for mutant in chosen for test in mutant.tests}))
    _, status = os.waitpid(pid, 0)
    if status:
        print(f"the tests fail without any bug:\n{copy.told()}")
    return bool(status)


def run(chosen: list[Mutant], copies: list[Copy], until: float) -> tuple[int, int]:
    """(how many were run, how many of them not caught). None is begun after the time `until` on the clock."""
    sources = Sources(ROOT / PACKAGE)
    free, waiting, running = list(copies), list(chosen), dict[int, tuple[Mutant, Copy]]()
    ended = missed = 0
    while running or (waiting and time.monotonic() < until):
        while free and waiting and time.monotonic() < until:
            mutant, copy = waiting.pop(0), free.pop()
            running[copy.start(mutant.tests, sources.change(mutant.bug))] = mutant, copy
        pid, status = os.wait()
        mutant, copy = running.pop(pid)
        wrong = copy.end(os.waitstatus_to_exitcode(status))
        free.append(copy)
        ended, missed = ended + 1, missed + bool(wrong)
        print(f"{wrong or 'caught'}: {mutant}", flush=True)
    return ended, missed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only bugs with one of these in their definition or description")
    parser.add_argument("--sample", type=int, metavar="N", help="N of them, others every day, until all had their turn")
    parser.add_argument("--day", type=int, help="the day of the sample, to repeat one; default: today's number")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no other bug after this time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time; default: all cores")
    parser.add_argument("--check", action="store_true", help="only see that all places and tests are there")
    parser.add_argument("--tests-pass", action="store_true", help="do not run the tests without a bug first")
    return parser.parse_args()


def main() -> int:
    options, until = arguments(), time.monotonic()
    every = mutants()
    if gone := list(lost(every)):
        print(*gone, f"{len(gone)} descriptions to be mended", sep="\n")
        return 1
    if options.check:
        print(f"all {len(every)} are there")
        return 0
    chosen = [mutant for mutant in every if not options.words or any(word in str(mutant) for word in options.words)]
    if options.sample:
        day = (datetime.now(UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days if options.day is None else options.day
        chosen = sample(chosen, options.sample, day)
        print(f"{len(chosen)} of {len(every)} deliberate bugs, those of day {day}", flush=True)
    if not chosen:
        print("no mutant has one of these words in its definition or description")
        return 1
    import peft  # noqa: F401 - loaded once, for the tests in all forks

    with tempfile.TemporaryDirectory() as temporary:
        copies = [Copy(Path(temporary, str(number))) for number in range(min(options.jobs, len(chosen)))]
        if not options.tests_pass and tests_fail_without(chosen, copies[0]):
            return 1
        ended, missed = run(chosen, copies, until + 60 * options.minutes)
    late = f"; no time for {len(chosen) - ended} more" if ended < len(chosen) else ""
    print(f"{ended - missed} of {ended} caught{late}")
    return 1 if missed else 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True  # or a bug put in and taken out within a second would stay
    sys.exit(main())
