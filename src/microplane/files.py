"""Where files go, how they get there whole (everything is written aside and renamed), and how small ones are read."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from microplane.errors import CheckpointError, ConfigError, MicroplaneError, nearest


def cache_dir() -> Path:
    """The user's cache: $MICROPLANE_CACHE, else $XDG_CACHE_HOME/microplane, else ~/.cache/microplane."""
    if own := os.environ.get("MICROPLANE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "microplane"


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write a file to; it takes the place of `path` when the block ends well.

    A reader, also after a kill or a full disk, sees the old file or the new one and never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # what a user knows of, and not the temporary one
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_aside(path: Path, content: bytes) -> None:
    """Write a whole file aside and rename it."""
    with aside(path) as temporary:
        temporary.write_bytes(content)


def read_object(file: Path, error: type[MicroplaneError], absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object; `absent` where the file is not there, if that is given.

    Raises:
        error: if the file cannot be read, or is something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        if absent is not None and isinstance(problem, FileNotFoundError):
            return absent
        raise error(f"cannot read {file}: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:  # also what is not UTF-8
        raise error(f"{file} is not valid JSON: {problem}") from None
    if not isinstance(value, dict):
        raise error(f"{file} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_folder(runs: Path, name: str, parts: Sequence[str], again: bool = False) -> Path:
    """Make the folder of a run.

    Args:
        name: of the folder; if empty, it is made of `parts`, with a number where that is taken.
        again: the run is there already and goes on.

    Raises:
        ConfigError: if the name is taken, is not one folder's, or the folder cannot be made.
    """
    if name == ".." or name != Path(name).name:
        raise ConfigError(f"name = {name!r} is not the name of one folder; where runs are kept is --set runs=FOLDER")
    try:
        folder = runs / (name or _free_name(runs, parts))
        if not again and folder.is_dir() and not all(_is_leftover(path) for path in folder.iterdir()):
            raise ConfigError(
                f"the run {folder} exists. Continue it with `microplane train --resume {folder}`, "
                "give this one another --name, or delete that folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in [path for path in folder.rglob(".*.tmp") if _is_leftover(path)]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    except OSError as error:
        place = str(runs / name)[:200]
        raise ConfigError(
            f"the run's folder cannot be made at {place}: {error.strerror}. Choose another place with --set runs=FOLDER"
        ) from None
    return folder


def _free_name(runs: Path, parts: Sequence[str]) -> str:
    base = "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts).lower()[:60]
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (runs / name).exists())


def _is_leftover(path: Path) -> bool:
    """A file that was being written aside when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def named(path: Path) -> Path:
    """As it was given, but `.` and `..` by the name that the folder has."""
    return path.resolve() if path.name in ("", "..") else path


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


def write_json(path: Path, value: Any) -> None:
    write_aside(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
