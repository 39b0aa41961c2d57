"""Where files go, how they get there whole (everything is written aside and renamed), and how small ones are read.

What is being written lies beside its place as `.NAME.MACHINE-PID-RANDOM.tmp`. So whoever finds one that a killed
process left can tell that it is nobody's any more, and deletes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from microplane.errors import MicroplaneError

if sys.platform != "win32":
    import fcntl

ABANDONED = 3600.0  # seconds after which what a process of another machine was writing counts as left behind
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
_LONGEST = 200  # bytes of the name that a temporary one repeats: no file system takes more than 255 in all


def cache_dir() -> Path:
    """The user's cache: $MICROPLANE_CACHE, else $XDG_CACHE_HOME/microplane, else ~/.cache/microplane."""
    if own := os.environ.get("MICROPLANE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "microplane"


# Writing aside


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write a file to; it takes the place of `path` when the block ends well.

    A reader, also after a kill, a full disk or a power cut, sees the old file or the new one and never a part.

    Raises:
        OSError: with the name of `path`, and not the temporary one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_of(path)
    temporary = _temporary(path)
    try:
        temporary.touch()
        usual = temporary.stat().st_mode
        yield temporary
        temporary.chmod(usual)  # safetensors makes files that nobody else may read
        _sync(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        _name_the_place(error, temporary, path)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_aside(path: Path, content: bytes) -> None:
    """Write a whole file aside and rename it."""
    with aside(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    write_aside(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def reserve(path: Path, size: int) -> None:
    """A new file of so many bytes, which the disk has room for where the system can be asked: what is written through a
    memory map to a full disk ends the process.

    Raises:
        OSError: if there is no room.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


@contextmanager
def folder_aside(folder: Path, there: Literal["refuse", "keep", "replace"] = "refuse") -> Iterator[Path]:
    """The same for a folder: a temporary one, which becomes `folder` when the block ends well.

    Args:
        there: what happens if there is such a folder by then, and it is not empty. It is an error, or the old one is
            kept (another process was faster, and its content is the same), or it is replaced.

    Raises:
        OSError: with the name of `folder`, and not the temporary one.
    """
    with scratch_folder(folder) as temporary:
        yield temporary
        for at, _, names in os.walk(temporary):
            for name in names:
                Path(at, name).chmod(temporary.stat().st_mode & 0o666)  # as of a file that the user makes
                _sync(Path(at, name))
            _sync_folder(Path(at))
        _put_in_place(temporary, folder, there)
        _sync_folder(folder.parent)


def _put_in_place(temporary: Path, folder: Path, there: str) -> None:
    if there == "replace" and folder.is_dir():
        with scratch_folder(folder) as old:
            os.replace(folder, old)  # an empty folder gives way; what it then holds goes with it
            os.replace(temporary, folder)
        return
    try:
        os.replace(temporary, folder)
    except OSError:
        if there != "keep" or not folder.is_dir():
            raise


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder beside a place, for as long as the block lasts."""
    temporary = _temporary(beside)
    try:
        _clean_of(beside)
        temporary.mkdir(parents=True)
        yield temporary
    except OSError as error:
        _name_the_place(error, temporary, beside)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{_shortened(path.name)}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def _shortened(name: str) -> str:
    return os.fsencode(name)[:_LONGEST].decode(errors="ignore")


def _name_the_place(error: OSError, temporary: Path, path: Path) -> None:
    """Let an error speak of what the user knows."""
    if error.filename is None or str(error.filename).startswith(str(temporary)):
        error.filename = str(path)


def _sync(file: Path) -> None:
    """Have the disk hold a file's content before its name is changed."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder, where the system can be asked for it."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some file systems have no such thing
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or folder at once: nobody sees a part of it.

    Raises:
        OSError: if it is gone, or may not be deleted.
    """
    away = _temporary(path)
    os.replace(path, away)
    _delete(away)


# What was left behind


def clean(folder: Path, deep: bool = False) -> None:
    """Delete what killed processes were writing in a folder; with `deep`, below it too."""
    for path in list(folder.rglob(".*.tmp") if deep else folder.glob(".*.tmp")):
        if is_leftover(path):
            _delete(path)


def _clean_of(place: Path) -> None:
    """Delete what killed processes were about to put in this place."""
    name = _shortened(place.name)
    with suppress(OSError):  # no such folder yet
        for path in place.parent.iterdir():
            found = _TEMPORARY.fullmatch(path.name)
            if found and found["name"] == name and is_leftover(path):
                _delete(path)


def is_leftover(path: Path) -> bool:
    """Whether this is something of ours that was being written aside, and whose writer is dead.

    Of a process on another machine (or in another container) it cannot be asked; then for an hour nothing may have
    changed.
    """
    found = _TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    try:
        if found["machine"] == _machine():
            return not _is_alive(int(found["pid"]), path.stat().st_ctime)
        changed = max(one.stat().st_ctime for one in (path, *path.rglob("*")))
    except OSError:  # it is gone
        return False
    return time.time() - changed > ABANDONED


def _is_alive(pid: int, since: float) -> bool:
    """Whether the process runs, and is not a later one that was given the same number."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < since + 60  # clocks are set
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@cache
def _machine() -> str:
    """Where process numbers mean the same: this boot of this machine, or this container on it."""
    told = [platform.node()]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:6]


def _delete(path: Path) -> None:
    """Delete a file or a folder; another process may be at it too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


# Locks


class Lock:
    """A hold on a file or folder that all processes of this machine see. It ends with `release`, with this object,
    and with the process, however that ends."""

    def __init__(self, handle: int | None):
        self._handle = handle

    def holds(self, path: Path) -> bool:
        """Whether what was locked is still what lies at this path."""
        try:
            return self._handle is None or os.path.samestat(os.fstat(self._handle), path.stat())
        except OSError:
            return False

    def release(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        self.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[None]]:
        return Lock, (None,)  # a copy holds nothing: two would close the same handle


def lock(path: Path, shared: bool = False) -> Lock | None:
    """Lock what lies at a path, without waiting; None where another holds it, or nothing lies there.

    Where a system knows no such locks (Windows, some network file systems) one is given to everybody.
    """
    if sys.platform == "win32":
        return Lock(None)
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    held = Lock(handle)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return Lock(None)
    return held


# JSON


def json_value(value: Any) -> Any:
    """As JSON has it, which has no NaN and no infinity: they become null; dataclasses become objects."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        return {one.name: json_value(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {name: json_value(item) for name, item in value.items()}
    return [json_value(item) for item in value] if isinstance(value, list | tuple) else value


def json_line(value: Any) -> str:
    """JSON on one line; see `json_value`."""
    return json.dumps(json_value(value), ensure_ascii=False, allow_nan=False)


# Reading


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


def json_lines(file: Path, most: int | None = None) -> list[Any]:
    """What the lines of a JSONL file of ours hold. A line ends with a line feed alone: texts hold other line ends.

    Args:
        most: lines that are read.

    Raises:
        OSError, ValueError: if it is not there, or no such file.
    """
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:most] if line]


def object_in(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is not there, cannot be read, or holds something else."""
    try:
        return read_object(file, MicroplaneError)
    except MicroplaneError:
        return {}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named(path: Path) -> Path:
    """As it was given, but `.` and `..` by the name that the folder has."""
    return path.resolve() if path.name in ("", "..") else path
