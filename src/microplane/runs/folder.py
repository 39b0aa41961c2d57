"""The folder of a run: made once for all processes that ask at the same time, and found again."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from microplane.errors import CheckpointError, ConfigError, nearest
from microplane.files import Lock, clean, is_leftover, lock, named

_begun: list[tuple[Path, Lock]] = []  # folders made by this process that have no run.yaml yet
_beginning = threading.Lock()


def run_folder(runs: Path, name: str, parts: Sequence[str], again: bool = False) -> Path:
    """Make the folder of a run. Of all processes and threads that ask, each gets a folder of its own.

    Args:
        name: of the folder; if empty, it is made of `parts`, with a number where that is taken.
        again: the run is there already and goes on.

    Raises:
        ConfigError: if the name is taken, is not one folder's, or the folder cannot be made.
    """
    if name == ".." or name != Path(name).name:
        raise ConfigError(f"name = {name!r} is not the name of one folder; where runs are kept is --set runs=FOLDER")
    try:
        if again:
            folder = runs / name
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _named_folder(runs / name) if name else _new_folder(runs, parts)
        clean(folder, deep=True)
    except OSError as error:
        place = str(runs / name)[:200]
        raise ConfigError(
            f"the run's folder cannot be made at {place}: {error.strerror}. Choose another place with --set runs=FOLDER"
        ) from None
    return folder


def _new_folder(runs: Path, parts: Sequence[str]) -> Path:
    base = "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts).lower()[:60]
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    for folder in (runs / name for name in names):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        if _claim(folder):
            return folder
    raise AssertionError("the numbers do not end")


def _named_folder(folder: Path) -> Path:
    """Make a folder, or take an empty one that nobody else is about to use."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
    if not _is_free(folder):
        raise ConfigError(
            f"the run {folder} exists. Continue it with `microplane train --resume {folder}`, "
            "give this one another --name, or delete that folder."
        )
    if not _claim(folder):
        raise ConfigError(f"the run {folder} is being started by another process. Give this one another --name.")
    return folder


def _claim(folder: Path) -> bool:
    """Take an empty folder for this process, until it has a run.yaml. Whoever locks it first has it."""
    with _beginning:
        _begun[:] = [
            (place, held) for place, held in _begun if held.holds(place) and not (place / "run.yaml").is_file()
        ]
        held = lock(folder)
        if held is None or not held.holds(folder) or not _is_free(folder):
            return False
        _begun.append((folder.absolute(), held))
        return True


def _is_free(folder: Path) -> bool:
    return all(is_leftover(path) for path in folder.iterdir())


def find_run(path: Path) -> Path:
    """The folder of a run that exists, as it was given; `.` by its name.

    Raises:
        CheckpointError: if it is none, with the nearest one.
    """
    path = named(path)
    if not (path / "run.yaml").is_file():
        what = "it has no run.yaml" if path.exists() else "there is no such folder"
        known = [str(file.parent) for file in path.parent.glob("*/run.yaml")]
        raise CheckpointError(f"{path} is not a run that can be continued: {what}.{nearest(str(path), known)}")
    return path
