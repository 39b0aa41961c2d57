"""The folder of a comparison: new, or one whose planning was broken off; one process's alone; and what is said where
the disk fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microplane.errors import ConfigError, TrainingError, check_type
from microplane.files import clean, lock
from microplane.runs.inline_data import STDIN

PLAN, TRIALS = "plan.json", "trials"
PLANNING = ".planning"  # stands in a folder that was empty, until its plan is there: all else in it can be made again
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
FAILING = tuple(os.strerror(number) for number in DISK)
"""What is said by a run, or by a process, whose disk is full or fails."""
LEAST_ROOM = 1_000_000  # bytes of a disk with less than which no run can be made


def new_folder(out: str | Path | None, model: Any, data: Any) -> Path:
    """The folder of a comparison that begins.

    Raises:
        ConfigError: if something is there already.
    """
    if out is not None:
        check_type(out, "out", (str, Path), "the path of a folder")
        folder = Path(out)
        _refuse_begun(folder)
        there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if there and not (folder / PLANNING).is_file():
            raise ConfigError(f"--out {folder} is there already, and no comparison; give it another name")
        return folder
    named = "rows" if data == STDIN or not isinstance(data, str | Path) else Path(data).stem
    base = f"compare-{Path(str(model)).stem}-{named}"
    number, folder = 1, Path("runs") / base
    while folder.exists() and not _is_left(folder):
        number, folder = number + 1, Path("runs") / f"{base}-{number + 1}"
    return folder


def is_begun(folder: Path) -> bool:
    """Whether a comparison has come so far that it can go on."""
    return (folder / PLAN).is_file()


def _refuse_begun(folder: Path) -> None:
    if is_begun(folder):
        raise ConfigError(f"the comparison {folder} exists. Go on with: microplane compare --resume {folder}")


def _is_left(folder: Path) -> bool:
    """Whether a comparison was to begin here, and was killed in its planning."""
    if is_begun(folder) or not (folder / PLANNING).is_file() or (held := lock(folder)) is None:
        return False
    held.release()
    return True


@contextmanager
def held_folder(folder: Path, begins: bool = False) -> Iterator[None]:
    """The folder is this process's alone; what was made in vain is taken away again.

    Args:
        begins: the comparison is a new one.

    Raises:
        ConfigError: if another process has it, or a comparison that would begin was begun there already.
        TrainingError: where the disk is full or fails within the block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    if held is None:
        raise ConfigError(f"the comparison {folder} is running in another process. Wait for its end, or stop it there")
    try:
        if begins:
            _refuse_begun(folder)  # begun since one looked
            (folder / PLANNING).touch()
            _clear(folder)
        yield
    except KeyboardInterrupt as interrupt:
        if is_begun(folder):
            interrupt.add_note(f"all is kept; go on with: microplane compare --resume {folder}")
        raise
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise TrainingError(disk_failed(folder, f"{error.filename or folder}: {error.strerror}")) from None
    finally:
        if is_begun(folder):
            (folder / PLANNING).unlink(missing_ok=True)
        else:
            _clear(folder)
            (folder / PLANNING).unlink(missing_ok=True)
            _remove(folder)
        held.release()


def disk_failed(folder: Path, why: str) -> str:
    """What is said of a comparison that ends for that."""
    if is_begun(folder):
        return f"{why}. All that is done is kept: make room, and go on with: microplane compare --resume {folder}"
    return f"{why}. Make room, and begin the comparison again"


def _clear(folder: Path) -> None:
    """Delete what was made for a comparison that never began."""
    clean(folder, deep=True)
    for pattern in ("data/*.jsonl", "rows.jsonl", "stdin.*", "trials.yaml"):
        for file in folder.glob(pattern):
            file.unlink()
    _remove(folder / "data")


def _remove(folder: Path) -> None:
    """Unless something is in it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
