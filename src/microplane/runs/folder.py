"""The folder of a run: made once for all processes that ask at the same time, held by one alone, and found again."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from microplane.errors import CheckpointError, ConfigError, nearest
from microplane.files import Lock, clean, is_leftover, lock, named

RUNNING = ".running"  # who works in the folder, for messages; what holds it is the lock, which a dead process has not
PATIENCE = 1.0  # seconds for another process to write that, once it holds the folder


@contextmanager
def run_folder(runs: Path, name: str, parts: Sequence[str], again: bool = False) -> Iterator[Path]:
    """The folder of a run, which is this process's alone as long as the block lasts.

    Of all processes and threads that ask, each gets a folder of its own. One that nothing came of (it has no run.yaml
    at the end) is removed, however the block ends.

    Args:
        name: of the folder; if empty, it is made of `parts`, with a number where that is taken.
        again: the run is there already and goes on.

    Raises:
        ConfigError: if the name is taken, is not one folder's, or the folder cannot be made.
        CheckpointError: if the run that shall go on is in the hands of another process.
    """
    if name == ".." or name != Path(name).name or (name and not name.strip()):
        raise ConfigError(f"name = {name!r} is not the name of one folder; where runs are kept is --set runs=FOLDER")
    hold = _Hold(fresh=not again, above=[folder for folder in (runs, *runs.parents) if not folder.exists()])
    try:
        try:
            if again:
                _take_again(hold, runs / name)
            elif name:
                _take_named(hold, runs / name)
            else:
                _take_new(hold, runs, parts)
            clean(hold.folder, deep=True)
        except OSError as error:
            place = str(runs / name)[:200]
            if again:
                raise CheckpointError(
                    f"the run {place} cannot be gone on with, for nothing can be written there: {error.strerror}. Make "
                    "room or allow writing, or copy it to another place and go on with the copy"
                ) from None
            why = f"the run's folder cannot be made at {place}: {error.strerror}"
            raise ConfigError(f"{why}. Choose another place with --set runs=FOLDER") from None
        yield hold.folder
    finally:
        hold.release()


@dataclass
class _Hold:
    """What was made and locked so far, to be undone wherever it is interrupted."""

    fresh: bool  # a run that begins
    above: list[Path]  # folders around it that were not there
    folder: Path = Path()
    making: Path | None = None  # made and not yet taken
    lock: Lock | None = None

    def make(self, folder: Path) -> bool:
        """Make a folder; false if it is there already."""
        self.making = folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            self.making = None
            if not folder.parent.is_dir():  # a link to nothing, say
                raise
            return False
        return True

    def take(self, folder: Path) -> bool:
        """Lock a folder and say so in it; false if another has it, or it is gone."""
        held = lock(folder)
        if held is None or not held.holds(folder) or (self.fresh and not _is_free(folder)):
            self.making = None
            return False
        self.folder, self.lock = folder, held
        (folder / RUNNING).write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        return True

    def release(self) -> None:
        if self.lock is not None:
            with suppress(OSError):
                (self.folder / RUNNING).unlink()
            if self.fresh and not (self.folder / "run.yaml").is_file():
                shutil.rmtree(self.folder, ignore_errors=True)
            self.lock.release()
        for empty in [*([self.making] if self.making else []), *self.above]:
            with suppress(OSError):  # it is not empty: a run is in it
                empty.rmdir()


def _take_new(hold: _Hold, runs: Path, parts: Sequence[str]) -> None:
    base = "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts).lower()[:60]
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    for folder in (runs / name for name in names):
        if hold.make(folder) and hold.take(folder):
            return


def _take_named(hold: _Hold, folder: Path) -> None:
    """Make a folder, or take an empty one that nobody else is about to use."""
    if not hold.make(folder) and not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if hold.take(folder):
        return
    if (who := _user_of(folder)) or _is_free(folder):
        raise ConfigError(f"the run {folder} is running in {who or 'another process'}. Give this one another --name")
    raise ConfigError(
        f"the run {folder} exists. Continue it with `microplane train --resume {folder}`, "
        "give this one another --name, or delete that folder."
    )


def _take_again(hold: _Hold, folder: Path) -> None:
    hold.make(folder)
    if not hold.take(folder) and ((who := _user_of(folder)) or not hold.take(folder)):
        raise CheckpointError(
            f"the run {folder} is running in {who or 'another process'}. Wait for its end, or stop it there with "
            "Ctrl-C (or kill -INT), which saves all"
        )


def _user_of(folder: Path) -> str | None:
    """The process that holds a folder; None if none does."""
    end = time.monotonic() + PATIENCE
    while (held := lock(folder)) is None:
        with suppress(OSError):
            if who := (folder / RUNNING).read_text(encoding="utf-8", errors="replace"):
                return who
        if time.monotonic() > end:
            return "another process"
        time.sleep(0.02)
    held.release()
    return None


def _is_free(folder: Path) -> bool:
    return all(path.name == RUNNING or is_leftover(path) for path in folder.iterdir())


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
