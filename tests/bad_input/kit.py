"""Runs the real command line in this process and looks at what a user is told, and at what is left on the disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from microplane.cache.eviction import COUNT
from microplane.cli import app as cli
from tests.tiny import save_tiny_folder

QUICK = (
    "train.steps=4",
    "train.batch_size=4",
    "train.eval_every=2",
    "train.threads=1",
    "train.lr=0.01",
    "eval.rows=2",
    "eval.max_new_tokens=3",
    "model.dtype=float32",
)
ROWS = [{"prompt": f"repeat {number}", "completion": f"{number} {number % 7}"} for number in range(24)]
BASE = "runs/base"  # a finished run

Spoil = Callable[[Path], Any]


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def furnish(folder: Path) -> None:
    """model/ and rows.jsonl: what is right, for tests to put something wrong beside or into."""
    save_tiny_folder(folder / "model")
    (folder / "rows.jsonl").write_text(jsonl(ROWS))


def copy_home(home: Path, folder: Path) -> None:
    """A copy of a furnished folder whose run knows its base at its new place."""
    shutil.copytree(home, folder, dirs_exist_ok=True)
    for file in folder.glob("runs/*/adapter/*.json"):
        file.write_text(file.read_text().replace(str(home), str(folder)))


# What is asked


def sets(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("--set", assignment)]


def train(*more: str, model: str = "model", data: str = "rows.jsonl") -> list[str]:
    """A run of four steps on a tiny model; `more` comes last and so overrules."""
    return ["train", model, data, *sets(*QUICK), *more]


def train_with(*assignments: str) -> list[str]:
    return train(*sets(*assignments))


def generate(*more: str, model: str = "model", tokens: int = 3) -> list[str]:
    return ["generate", model, *more, "--dtype", "float32", *sets(f"max_new_tokens={tokens}")]


def evaluate(*more: str, model: str = "model", data: str = "rows.jsonl") -> list[str]:
    return ["eval", model, data, *sets("model.dtype=float32", "eval.rows=2", "eval.max_new_tokens=2"), *more]


RESUME = ["train", "--resume", BASE]
MERGE = ["merge", BASE, "out"]
GENERATE = generate("hi", model=BASE)

# What is wrong


def write(name: str, content: str | bytes) -> Spoil:
    def spoil(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def cut(name: str, size: int) -> Spoil:
    """Keep the first bytes only."""
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:size])


def remove(name: str) -> Spoil:
    return lambda here: shutil.rmtree(here / name) if (here / name).is_dir() else (here / name).unlink()


def rename(name: str, other: str) -> Spoil:
    return lambda here: (here / name).rename(here / other)


def folder(name: str) -> Spoil:
    return lambda here: (here / name).mkdir(parents=True)


def edit(name: str, without: tuple[str, ...] = (), /, **changes: Any) -> Spoil:
    """Change fields of a JSON file."""

    def spoil(here: Path) -> None:
        fields = json.loads((here / name).read_text())
        fields = {key: value for key, value in fields.items() if key not in without}
        (here / name).write_text(json.dumps(fields | changes))

    return spoil


def edit_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(here: Path) -> None:
        tensors = load_file(here / name)
        change(tensors)
        save_file(tensors, here / name)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    return lambda here: [spoil(here) for spoil in spoils]


def newest_checkpoint(here: Path) -> Path:
    return sorted((here / BASE / "resume").glob("step-*"))[-1]


def in_checkpoint(spoil: Callable[[str], Spoil]) -> Spoil:
    """Of the newest checkpoint of the finished run; `spoil` is given its folder's name."""
    return lambda here: spoil(str(newest_checkpoint(here).relative_to(here)))(here)


# What comes of it


@dataclass(frozen=True)
class Case:
    """A kind of bad input: what is wrong, what is asked, and what the message must say."""

    name: str
    arguments: list[str]
    says: tuple[str, ...]
    spoil: Spoil = lambda here: None
    code: int = 1
    stdin: str = ""

    def __str__(self) -> str:
        return self.name


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below `folder` and what it holds; folders as well, by a slash. Not the cache's count of itself."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == COUNT:
            continue
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name + "/"] = ""
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass
class Told:
    """What a command that failed said and left."""

    out: str
    error: str  # the message on stderr, without its `error: `
    new: list[str]  # files that were not there before, the cache aside


@dataclass
class CommandLine:
    here: Path
    capsys: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.patch.setattr("sys.argv", ["microplane", *arguments])
        self.capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def refuses(self, *arguments: str, code: int = 1) -> Told:
        """Run what must fail: one message, the exit code, no traceback, and nothing that was there has changed."""
        before = snapshot(self.here)
        got, out, err = self.run(*arguments)
        after = snapshot(self.here)
        check_message(got, out, err, code)
        changed = [name for name, content in before.items() if after.get(name) != content]
        assert not changed, f"changed or gone: {changed}; {err}"
        new = [name for name in after if name not in before]
        assert not [name for name in new if name.rstrip("/").endswith(".tmp")], "something half written was left behind"
        return Told(out, err.removeprefix("error: ").rstrip("\n"), [n for n in new if not n.startswith("cache/")])

    def check(self, case: Case) -> None:
        """Spoil, ask, and see that the message says all it should and that nothing at all was left behind."""
        case.spoil(self.here)
        self.patch.setattr("sys.stdin", __import__("io").StringIO(case.stdin))
        told = self.refuses(*case.arguments, code=case.code)
        missing = [part for part in case.says if part not in told.error]
        assert not missing, f"{missing} not in: {told.error}"
        assert told.new == [], told.new


def check_message(got: int, out: str, err: str, code: int) -> None:
    assert got == code, (got, out, err)
    assert err.startswith("error: "), err
    assert len(err.strip()) > len("error: "), err
    assert sum(line.startswith("error:") for line in err.splitlines()) == 1, err
    assert "Traceback" not in out + err, err
