"""Example packages, installed by pip into a folder of their own, and the command line that sees them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny_folder

ROOT = Path(__file__).parents[2]
QUIET = {"capture_output": True, "text": True, "timeout": 300}


def install(example: str, folder: Path) -> Path:
    """`examples/<example>` in `folder/site`; gives back `folder`."""
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("pip and setuptools are needed to install the example without a network")
    shutil.copytree(ROOT / "examples" / example, folder / "source")  # a build leaves its files beside the source
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target", str(folder / "site")]
    built = subprocess.run([sys.executable, "-m", "pip", "install", *options, str(folder / "source")], **QUIET)
    assert built.returncode == 0, built.stderr
    return folder


SETS = {
    "method.rank": 4,
    "train.steps": 8,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.lr": 1e-2,
    "eval.rows": 2,
    "eval.max_new_tokens": 2,
}  # of a run that takes seconds


def place_with(example: str, folder: Path, rows: list[dict]) -> Path:
    """A folder with the package, a small model and rows."""
    place = install(example, folder)
    save_tiny_folder(place / "model")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def microplane(place: Path, *arguments: str, installed: bool = True):
    """The command line in the folder `place`, with what is installed there or without it."""
    paths = [*[str(place / "site")] * installed, str(ROOT / "src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
    command = [sys.executable, "-m", "microplane.cli.app", *arguments]
    return subprocess.run(command, **QUIET, env=environment, cwd=place)
