"""Rows of a data set of the Hub, by name: `hf://org/name:split`. Read once, as they stream, into files of the cache."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from microplane.cache.entries import touch
from microplane.cache.eviction import new_entry
from microplane.data.progress import RowProgress
from microplane.data.reading.read import SPLITS, find_splits
from microplane.errors import ConfigError, DataError, first_line, notice
from microplane.files import cache_dir, write_json
from microplane.models.configs.head import IGNORED

PREFIX = "hf://"
NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?"
)
SPELLING = "hf://org/name, hf://org/name:split, hf://org/name/config:split or hf://org/name@revision:split"
EVERY = 1000  # rows, after which progress is told


@dataclass(frozen=True)
class HubName:
    """Which rows of the Hub are meant; a split of None is all that the data set has."""

    repo: str
    revision: str | None
    config: str | None
    split: str | None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Raises: ConfigError, for what is no such name."""
        found = NAME.fullmatch(text.removeprefix(PREFIX))
        if found is None:
            raise ConfigError(f"{text!r} names no data set of the Hub; expected {SPELLING}")
        return cls(**found.groupdict())

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        part = f"/{self.config}" if self.config else ""
        return f"{PREFIX}{self.repo}{at}{part}" + (f":{self.split}" if self.split else "")


def is_on_hub(name: str) -> bool:
    return name.startswith(PREFIX)


def hub_splits(name: str, progress: RowProgress | None = None) -> dict[str, list[Path]]:
    """The files of each split, read from the Hub if this revision of it is not here yet.

    Classes are written by their names, and the -1 of a row without one as -100 (`data.no_label`). A column that holds
    no text, numbers or lists of them is left out, and that is said. Without a network, what was read last is taken, and
    that is said.

    Raises:
        ConfigError: for a name that is none, or if the package `datasets` is not installed.
        DataError: for a data set, configuration or split that is not there, or that cannot be read.
    """
    wanted = HubName.parse(name)
    latest = _entry(str(wanted)).with_suffix(".json")  # which revision was read last, for days without a network
    revision = _revision(wanted) or _last_read(latest, wanted)
    folder = _entry(f"{wanted} {revision}")
    if not folder.is_dir():
        _read(wanted, revision, folder, progress)
        write_json(latest, {"name": str(wanted), "revision": revision})
    touch(folder)
    return find_splits(folder / f"{wanted.split}.jsonl") if wanted.split else _sides(wanted, folder)


def _sides(wanted: HubName, folder: Path) -> dict[str, list[Path]]:
    """The splits that are a side of the data by their names; others are named.

    Raises:
        DataError: if none of them is the training data.
    """
    there = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    try:
        sides = find_splits(folder)
    except DataError:
        raise DataError(
            f"{wanted}: none of its splits is the training data by its name; there are {', '.join(there)}. Name one: "
            f"{replace(wanted, split=next(iter(there), 'train'))}"
        ) from None
    used = [file for files in sides.values() for file in files]
    if left := [name for name, file in there.items() if file not in used]:
        other = replace(wanted, split=left[0])
        notice(f"{wanted}: not used of its splits: {', '.join(left)}; one can be named, as in data.validation={other}")
    return sides


def _library() -> Any:
    try:
        return import_module("datasets")
    except ModuleNotFoundError:
        raise ConfigError(
            "rows of the Hub need the package datasets, which is not installed: pip install 'microplane[hub]'"
        ) from None


def _revision(wanted: HubName) -> str | None:
    """The commit that the name stands for now; None where the Hub does not answer."""
    hub, errors = import_module("huggingface_hub"), import_module("huggingface_hub.errors")
    try:
        return str(hub.HfApi().dataset_info(wanted.repo, revision=wanted.revision).sha)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise DataError(
            f"{wanted}: the Hub has no such data set or revision, or it is not open to you ({first_line(error)}); "
            "see that the name is right, or log in: hf auth login"
        ) from None
    except Exception:  # no network, or told to stay without; which of the two makes no difference
        return None


def _entry(identity: str) -> Path:
    """A place of its own in the cache."""
    return cache_dir() / "hub_rows" / sha256(identity.encode()).hexdigest()[:32]


def _last_read(latest: Path, wanted: HubName) -> str:
    try:
        revision = str(json.loads(latest.read_text())["revision"])
    except (OSError, ValueError, KeyError):
        raise DataError(
            f"{wanted} was never read on this machine, and the Hub does not answer (no network, or HF_HUB_OFFLINE is "
            "set)"
        ) from None
    notice(f"the Hub does not answer: {wanted} is taken as it was read last (commit {revision[:12]})")
    return revision


def _read(wanted: HubName, revision: str, folder: Path, progress: RowProgress | None) -> None:
    library = _library()
    where = wanted.repo, wanted.config
    try:
        splits = [str(split) for split in library.get_dataset_split_names(*where, revision=revision)]
        if wanted.split and wanted.split not in splits:
            raise DataError(f"{wanted}: there is no such split; there are {', '.join(splits)}")
        with new_entry(folder, "the rows", f"rows of {wanted}") as temporary:
            for split in [wanted.split] if wanted.split else splits:
                rows = library.load_dataset(*where, split=split, revision=revision, streaming=True)
                file = temporary / f"{split}.jsonl"
                labelled = _write(rows, file, f"{wanted.repo} {split}", progress)
                if not labelled and not wanted.split and split not in SPLITS["train"]:
                    file.unlink()
                    notice(f"{wanted}: none of the rows of {split} has a label, so that this split is left out")
    except DataError:
        raise
    except Exception as error:  # of whatever reads this data set's files
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(f"{wanted} cannot be read: {type(error).__name__}: {first_line(error)}") from error


def _write(rows: Any, file: Path, what: str, progress: RowProgress | None) -> bool:
    """Rows as a JSONL file, as they come.

    Returns:
        Whether any row has a label, where these rows have a column of classes.
    """
    features = dict(rows.features or {})
    left = {name: type(kind).__name__ for name, kind in features.items() if not _is_plain(kind)}
    if left:
        listed = ", ".join(f"{name} ({kind})" for name, kind in left.items())
        notice(f"{what}: left out, as they are no text, numbers or lists: {listed}")
    classes = [name for name, kind in features.items() if _is_class(kind)]
    labelled = not classes
    total = _count(rows)
    with file.open("w", encoding="utf-8") as out:
        for number, row in enumerate(_plain(rows, left, features), start=1):
            labelled = labelled or any(row.get(name) not in (None, IGNORED) for name in classes)
            out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            if progress and number % EVERY == 0:
                progress(f"reading {what}", number, total)
    return labelled


def _is_class(feature: Any) -> bool:
    return hasattr(feature, "names") and hasattr(feature, "str2int")


def _is_plain(feature: Any) -> bool:
    """Whether JSON can hold such a value: not an image, a sound, bytes."""
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    if isinstance(feature, list | tuple):
        return all(map(_is_plain, feature))
    if type(feature).__name__ in ("Sequence", "List", "LargeList"):
        return _is_plain(feature.feature)
    if type(feature).__name__ == "Value":
        return "binary" not in str(feature.dtype)
    return type(feature).__name__ in ("ClassLabel", "Json", "Translation")


def _plain(rows: Any, left: Mapping[str, str], features: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows without what is left out, with classes by their names."""
    for row in rows:
        yield {name: _named(value, features.get(name)) for name, value in row.items() if name not in left}


def _named(value: Any, feature: Any) -> Any:
    """A value with the classes in it by their names. -1 is how these files say that there is none; a name hides that,
    so it becomes the number that means no label wherever it stands (`data.no_label`)."""
    if _is_class(feature):
        if not isinstance(value, int):
            return value
        return feature.names[value] if value >= 0 else IGNORED
    if isinstance(feature, dict) and isinstance(value, dict):
        return {name: _named(item, feature.get(name)) for name, item in value.items()}
    item = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    if item is None:
        return value
    if isinstance(value, dict) and isinstance(item, dict):  # of a sequence of objects, as lists by their keys
        return {name: [_named(one, item.get(name)) for one in many] for name, many in value.items()}
    return [_named(one, item) for one in value] if isinstance(value, list) else value


def _count(rows: Any) -> int | None:
    """How many rows the data set says it has."""
    splits = getattr(getattr(rows, "info", None), "splits", None) or {}
    own = splits.get(str(rows.split)) if hasattr(rows, "split") else None
    return getattr(own, "num_examples", None)
