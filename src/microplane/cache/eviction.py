"""How entries get into the cache and out of it: the least recently used go when there are too many bytes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from microplane.cache.entries import ABOUT, KINDS, Entry, entries, last_used, size_of
from microplane.errors import ConfigError, DataError, nearest, notice
from microplane.files import cache_dir, clean, folder_aside, lock, remove, write_json

DEFAULT_LIMIT = "20GB"
VARIABLE = "MICROPLANE_CACHE_LIMIT"
SPARED = 3600.0  # seconds since its last use in which nothing is deleted unasked
COUNT = "count.json"  # in the cache: its bytes when all entries were last looked at, plus those written since
COUNTED_AGAIN = 86400.0  # seconds after which that count is made anew
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@contextmanager
def new_entry(folder: Path, what: str, about: str = "") -> Iterator[Path]:
    """A temporary folder that becomes an entry when the block ends well; else it goes, and nothing has changed.

    Args:
        what: is written, for the message.
        about: where it comes from, for `microplane cache list`.

    Raises:
        DataError: if the disk is full, or the place cannot be written to.
        ConfigError: if the cache's limit is no size.
    """
    limit()  # what is wrong with it is told before the work, and not after
    try:
        with folder_aside(folder, there="keep") as temporary:
            yield temporary
            if about:
                (temporary / ABOUT).write_text(f"{about}\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{what} cannot be written to {folder.parent}: {error.strerror or error}; make room there, or "
            "name another folder with the environment variable MICROPLANE_CACHE"
        ) from None
    if folder.is_relative_to(cache_dir()) and not _has_room_for(folder):
        trim()


def limit() -> int | None:
    """Bytes that the cache may hold, downloaded models not counted; None for any number.

    Raises:
        ConfigError: if the variable is set to something that is no size.
    """
    text = os.environ.get(VARIABLE) or DEFAULT_LIMIT
    return None if text.strip().lower() == "none" else parse_size(text, VARIABLE, ", or none for no limit")


def parse_size(text: str, name: str, more: str = "") -> int:
    """Bytes. Raises: ConfigError, if `name` is no size."""
    return round(_parse(text, BYTES, f"{name} {text!r} is no size; expected one such as 500MB or 5GB{more}"))


def parse_age(text: str, name: str) -> float:
    """Seconds. Raises: ConfigError, if `name` is no age."""
    return _parse(text, SECONDS, f"{name} {text!r} is no age; expected minutes, hours, days or weeks, as 90m, 12h, 30d")


def _parse(text: str, units: dict[str, int], message: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in units:
        raise ConfigError(message)
    return float(found[1]) * units[found[2]]


def as_size(size: int) -> str:
    """As `12.3 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def trim() -> None:
    """Keep the cache within its limit, and say so if anything was deleted for it.

    What was used within an hour stays, and what a process of this machine holds.
    """
    most = limit()
    clean_all()
    if most is None:
        return
    found = sorted((entry for entry in entries() if entry.kind.automatic), key=lambda entry: entry.used)
    total = sum(entry.bytes for entry in found)
    gone: list[Entry] = []
    for entry in found:
        if total <= most:
            break
        if entry.used < time.time() - SPARED and delete(entry):
            gone.append(entry)
            total -= entry.bytes
    _keep_count(total, time.time())
    size, stays = as_size(sum(entry.bytes for entry in gone)), as_size(total)
    if gone:
        what = f"the {len(gone)} entries" if len(gone) > 1 else "the entry"
        notice(f"cache     deleted {what} used least recently, {size}: {stays} stay, {VARIABLE} is {as_size(most)}")
    elif total > most:
        notice(
            f"cache     holds {stays}, more than {VARIABLE} = {as_size(most)}, but all of it is in use or was of late"
        )


def _has_room_for(new: Path) -> bool:
    """Whether the cache is within its limit with a new entry, without looking at all of it.

    A count can be too small, when two processes add to it at once, or too large, when entries were deleted by hand;
    so it is made anew once a day, and before anything is deleted for it.
    """
    most = limit()
    try:
        count = json.loads((cache_dir() / COUNT).read_bytes())
        total, since = count["bytes"] + size_of(new), count["since"]
        if not 0 <= time.time() - since < COUNTED_AGAIN or (most is not None and total > most):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    _keep_count(total, since)
    return True


def _keep_count(total: int, since: float) -> None:
    with suppress(OSError):
        write_json(cache_dir() / COUNT, {"bytes": total, "since": since})


def clean_all() -> None:
    """Delete what killed processes were writing."""
    for kind in KINDS:
        clean(cache_dir() / kind)


def delete(entry: Entry) -> bool:
    """Delete an entry, at once for all who look for it; False if it is in use, was used since, or is gone."""
    held = [lock(path) for path in entry.paths]
    try:
        if None in held or last_used(entry.paths) != entry.used:
            return False
        for path in entry.paths:
            remove(path)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be; and what would have been, but is in use."""

    deleted: Sequence[Entry]
    in_use: Sequence[Entry]


def prune(
    which: str | None = None, to: int | None = None, older_than: float | None = None, dry_run: bool = False
) -> Pruned:
    """Delete entries, the least recently used first; never what a process of this machine is using.

    Args:
        which: a kind, or the beginning of an entry's name; everything but downloaded models if not given.
        to: stop when those that `which` stands for have no more bytes than this.
        older_than: only those that were not used for so many seconds.
        dry_run: delete nothing, and say what would be deleted.

    Raises:
        ConfigError: if `which` is neither.
    """
    chosen = sorted(_chosen(which), key=lambda entry: entry.used)
    total = sum(entry.bytes for entry in chosen)
    now = time.time()
    deleted, in_use = [], []
    if not dry_run:
        clean_all()
    for entry in chosen:
        if (to is not None and total <= to) or (older_than is not None and entry.used > now - older_than):
            continue
        if _is_held(entry) if dry_run else not delete(entry):
            in_use.append(entry)
        else:
            deleted.append(entry)
            total -= entry.bytes
    return Pruned(deleted, in_use)


def _chosen(which: str | None) -> list[Entry]:
    found = entries()
    if which is None:
        return [entry for entry in found if entry.kind.automatic]
    if which in KINDS:
        return [entry for entry in found if entry.kind.name == which]
    chosen = [entry for entry in found if "/" in which and entry.name.startswith(which)]
    if not chosen:
        hint = nearest(which, [*KINDS, *(entry.name for entry in found)])
        raise ConfigError(
            f"the cache has no kind {which!r} and nothing whose name begins so.{hint} Kinds are {', '.join(KINDS)}; "
            "names are in microplane cache list"
        )
    return chosen


def _is_held(entry: Entry) -> bool:
    return None in [lock(path) for path in entry.paths]
