"""Where files go, and how they get there whole: everything is written aside and renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_aside(path: Path, content: bytes) -> None:
    """Write a whole file aside and rename it."""
    with aside(path) as temporary:
        temporary.write_bytes(content)
