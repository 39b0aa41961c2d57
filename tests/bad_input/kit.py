"""Runs the real command line in this process and looks at what a user is told, and at what is left on the disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from microplane import cli
from tests.tiny import save_tiny_folder

QUICK = (
    "train.steps=4",
    "train.batch_size=4",
    "train.eval_every=2",
    "train.threads=1",
    "train.lr=0.01",
    "eval.rows=2",
    "eval.max_new_tokens=3",
    "method.rank=2",
    "model.dtype=float32",
)
ROWS = [{"prompt": f"repeat {number}", "completion": f"{number} {number % 7}"} for number in range(24)]


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sets(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("--set", assignment)]


def train_arguments(*more: str, model: str = "model", data: str = "rows.jsonl") -> list[str]:
    """A run of four steps on a tiny model; `more` comes last and so overrules."""
    return ["train", model, data, *sets(*QUICK), *more]


def furnish(folder: Path) -> None:
    """model/, rows.jsonl: what is right, for tests to put something wrong beside or into."""
    save_tiny_folder(folder / "model")
    (folder / "rows.jsonl").write_text(jsonl(ROWS))


def copy_home(home: Path, folder: Path) -> None:
    """A copy of a furnished folder whose run knows its base at its new place."""
    shutil.copytree(home, folder, dirs_exist_ok=True)
    for file in folder.glob("runs/*/adapter/*.json"):
        file.write_text(file.read_text().replace(str(home), str(folder)))


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below `folder` and what it holds; folders as well, by a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name + "/"] = ""
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass
class Told:
    """What a command said and left."""

    code: int
    out: str
    error: str  # the message on stderr, without its `error: `
    new: list[str]  # files that were not there before, the cache aside


@dataclass
class CommandLine:
    folder: Path
    capsys: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch
    asked: list[list[str]] = field(default_factory=list)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.asked.append(list(arguments))
        self.patch.setattr("sys.argv", ["microplane", *arguments])
        self.capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def refuses(self, *arguments: str, code: int = 1, while_running: Callable[[], None] | None = None) -> Told:
        """Run what must fail: one message, the exit code, no traceback, and nothing that was there has changed."""
        before = snapshot(self.folder)
        got, out, err = self.run(*arguments)
        after = snapshot(self.folder)
        assert got == code, (got, out, err)
        assert err.startswith("error: "), err
        assert sum(line.startswith("error:") for line in err.splitlines()) == 1, err
        assert "Traceback" not in out + err, err
        changed = [name for name, content in before.items() if after.get(name) != content]
        assert not changed, f"changed or gone: {changed}"
        new = [name for name in after if name not in before and not name.startswith("cache/")]
        assert not [name for name in after if name.endswith(".tmp")], "something half written was left behind"
        return Told(got, out, err.removeprefix("error: ").rstrip("\n"), new)
