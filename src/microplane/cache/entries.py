"""The entries of the cache: what there is, how large it is, when it was last used, and who is using it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microplane.files import Lock, cache_dir, lock, object_in

ABOUT = "about.txt"  # in an entry's folder: a line for people, of where it comes from


@dataclass(frozen=True)
class Kind:
    """What lies in one folder of the cache."""

    name: str
    what: str
    automatic: bool = True  # may be deleted without being asked for by name


KINDS = {
    kind.name: kind
    for kind in (
        Kind("data", "rows as tokens"),
        Kind("mixtures", "rendered rows of a mixture"),
        Kind("hub_rows", "rows of a data set of the Hub"),
        Kind("features", "outputs of a frozen model"),
        Kind("native", "compiled operations"),
        Kind("baseline", "how an untouched model does"),
        Kind("starts", "the first validation of a run"),
        Kind("number_format", "the speed of number formats"),
        Kind("blocks", "what a block of a model holds"),
        Kind("machine", "the speed of this machine"),
        Kind("sums", "a checksum of a model's weights"),
        Kind("models", "a downloaded model or tokenizer", automatic=False),
    )
}
_KEY = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True)
class Entry:
    """Something in the cache.

    Attributes:
        paths: its folder, or its files.
        about: where it comes from, in a few words.
        bytes: its size.
        used: when it was last used, in seconds since 1970.
    """

    kind: Kind
    key: str
    paths: tuple[Path, ...]
    about: str
    bytes: int
    used: float

    @property
    def name(self) -> str:
        """As it is named on the command line; what it begins with is enough there."""
        return f"{self.kind.name}/{self.key}"


def entries() -> list[Entry]:
    """All entries, the least recently used first within their kind. What is not ours is none."""
    found = []
    for kind in KINDS.values():
        of_kind = [entry for key, paths in _keys(kind).items() if (entry := _entry(kind, key, paths)) is not None]
        found += sorted(of_kind, key=lambda entry: entry.used)
    return found


def hold(path: Path) -> Lock | None:
    """Mark an entry as used now, and keep it from being deleted for as long as the lock that is given back lives.

    None for what lies elsewhere than in the cache, or is gone.
    """
    if not path.is_relative_to(cache_dir()):
        return None
    touch(path)
    return lock(path, shared=True)


def touch(path: Path) -> None:
    """Mark an entry as used now; a cache that may only be read stays as it is."""
    with suppress(OSError):
        os.utime(path)


def remembered(path: Path) -> dict[str, Any]:
    """The JSON object in the cache at `path`, marked as used now; empty where there is none, or it is damaged."""
    found = object_in(path)
    if found:
        touch(path)
    return found


def last_used(paths: tuple[Path, ...]) -> float:
    """Raises: OSError, if it is gone."""
    return max(path.stat().st_mtime for path in paths)


def _keys(kind: Kind) -> dict[str, tuple[Path, ...]]:
    """The files and folders of each key. The cache may lie in a folder that has other things too."""
    try:
        there = sorted((cache_dir() / kind.name).iterdir())
    except OSError:
        return {}
    if kind.name == "models":
        return dict(_downloads(there))
    found: dict[str, tuple[Path, ...]] = {}
    for path in there:
        key = path.name.split(".")[0]
        if _KEY.fullmatch(key):
            found[key] = (*found.get(key, ()), path)
    return found


def _downloads(there: list[Path]) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """What was fetched: beside each file, `FILE.ok` notes that it is whole."""
    for path in there:
        if path.is_dir() and any(path.glob("*.ok")):
            yield path.name, (path,)
        elif path.is_file() and path.suffix != ".ok" and (note := path.with_suffix(".ok")).is_file():
            yield path.name, (path, note)


def _entry(kind: Kind, key: str, paths: tuple[Path, ...]) -> Entry | None:
    """None if another process has just deleted it."""
    about = kind.what
    with suppress(OSError, ValueError):
        about = (paths[0] / ABOUT).read_text(encoding="utf-8").strip() or about
    try:
        return Entry(kind, key, paths, about, sum(map(size_of, paths)), last_used(paths))
    except OSError:
        return None


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder. Raises: OSError, if it is gone."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(Path(at, name).stat().st_size for at, _, names in os.walk(path) for name in names)
