"""Tokenised rows on disk: written one by one, read through memory maps, so their number does not matter.

A folder holds for each split these arrays of all its rows end to end, bare and in this machine's byte order. An array
that a kind of row has no use for is empty.

    ids             int32   tokens of all rows
    targets         bool    of each token: whether it is to be predicted; none in rows with labels
    segments        bool    of each token of a row with labels: whether it belongs to a second text
    ends            int64   of each row: where the next one begins
    source_lengths  int32   of each pair: tokens before its target
    counts          int32   of each row: what its loss is a sum over, target tokens or labels
    labels          float32 of each row or of each token: class numbers or values
    places          int64   of each row: file number and line
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from microplane.cache.entries import hold
from microplane.files import Lock

_ARRAYS: dict[str, Any] = {
    "ids": np.int32,
    "targets": np.bool_,
    "segments": np.bool_,
    "ends": np.int64,
    "source_lengths": np.int32,
    "counts": np.int32,
    "labels": np.float32,
    "places": np.int64,
}
Lost = Literal["", "start", "end", "answer"]  # of a row: the start of its prompt, the end of its text, of its answer
_WIDTH = np.dtype(np.int32).itemsize  # bytes of a token


@dataclass(frozen=True)
class TokenRow:
    """An example as it is stored. A row has targets or labels."""

    ids: list[int]
    targets: list[bool] = field(default_factory=list)  # of each token: whether it is to be predicted
    lost: Lost = ""  # what did not fit the greatest length
    source_length: int | None = None  # of a pair: tokens before its target
    segments: list[bool] = field(default_factory=list)  # of each token: whether it belongs to a second text
    labels: list[float] = field(default_factory=list)  # class numbers or values, of the row or of each token
    labelled: int = 0  # labelled tokens, or 1 for a row that has labels as a whole
    forged: bool = False  # special tokens stand in its text, and are tokenised as other text is
    continues: bool = True  # the answer begins where generation would; some templates open a thought only there

    @property
    def count(self) -> int:
        """What the loss of this row is a sum over: target tokens, labelled tokens, or the row itself."""
        return self.labelled if self.labels else sum(self.targets)


@dataclass(frozen=True)
class SplitInfo:
    """What is known of a split without opening its arrays."""

    rows: int
    tokens: int
    trained_tokens: int  # target tokens, or labels
    fingerprint: str  # sha256 of the tokens and what is trained; equal on every machine
    files: tuple[str, ...]  # names, by file number
    stops: tuple[int, ...]
    sizes: dict[str, int]  # items in each array
    labels_per_token: bool = False


class Dataset(Protocol):
    """Token rows by number, as they are in one epoch."""

    lengths: np.ndarray  # tokens of each row, (N,) int32
    trained_counts: np.ndarray  # what the loss of each row is a sum over, (N,) int32
    fingerprint: str
    features: Features | None  # what a frozen model makes of each row, where that was computed before

    @property
    def highest_id(self) -> int:
        """The highest number of a token in any row, in any epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Ids (length,) int32, and which of them are targets (length,) bool."""

    def pair(self, row: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Of a pair: the ids of its source, and of its target."""

    def segments(self, row: int, /) -> np.ndarray:
        """Of a row with labels: which of its tokens belong to a second text, (length,) bool."""

    def labels(self, row: int, /) -> np.ndarray:
        """float32: the class, the values, or one number for each token of the row; empty if it has none."""

    def at(self, epoch: int, /) -> Dataset:
        """The rows as they are in an epoch: always the same for the same number."""

    def where(self, row: int, /) -> str:
        """`file.jsonl:17`"""

    def prompt_and_target(self, row: int, /) -> tuple[list[int], list[int]]:
        """Ids before the last answer, and of the answer without its stop token."""


class TokenDataset:
    """The rows of one split as tokens: a `Dataset` that is the same in every epoch.

    Attributes:
        lengths: tokens of each row, (N,) int32.
        trained_counts: target tokens or labels of each row, (N,) int32.
        fingerprint: of ids, masks and labels, equal for equal data on any machine.
        features: what a frozen model makes of each row, where that was computed before.
    """

    features: Features | None = None

    def __init__(self, folder: Path, name: str, info: SplitInfo):
        self._info, self._held = info, hold(folder)  # it stays in the cache while it is read
        self.fingerprint = info.fingerprint
        maps = {}
        for part, kind in _ARRAYS.items():
            size = info.sizes[part]
            maps[part] = np.memmap(_file(folder, name, part), kind, "r") if size else np.empty(0, kind)
            if len(maps[part]) != size:
                raise ValueError(f"{name}.{part} has {len(maps[part])} items")
        self._ids, self._targets, self._segments = maps["ids"], maps["targets"], maps["segments"]
        self._source_lengths, self._labels = maps["source_lengths"], maps["labels"]
        self._places = maps["places"].reshape(-1, 2)
        self._ends = np.array(maps["ends"])
        self.lengths = np.diff(self._ends, prepend=0).astype(np.int32)
        self.trained_counts = np.array(maps["counts"])

    def __len__(self) -> int:
        return self._info.rows

    def _tokens_of(self, row: int) -> slice:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        end = int(self._ends[row])
        return slice(end - int(self.lengths[row]), end)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids (length,) int32, and which of them are targets (length,) bool."""
        tokens = self._tokens_of(row)
        ids = np.array(self._ids[tokens])
        return ids, np.array(self._targets[tokens]) if len(self._targets) else np.zeros(len(ids), np.bool_)

    def pair(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a pair: the ids of its source, and of its target."""
        ids, cut = np.array(self._ids[self._tokens_of(row)]), int(self._source_lengths[row])
        return ids[:cut], ids[cut:]

    def segments(self, row: int) -> np.ndarray:
        """Of a row with labels: which of its tokens belong to a second text, (length,) bool."""
        return np.array(self._segments[self._tokens_of(row)])

    def at(self, epoch: int) -> TokenDataset:
        """The rows as they are in an epoch: always the same."""
        return self

    def with_features(self, features: Features) -> TokenDataset:
        """The same rows, and what was computed of them."""
        other = copy(self)
        other.features = features
        return other

    def labels(self, row: int) -> np.ndarray:
        """float32: the class, the values, or one number for each token of the row; empty if it has none."""
        if self._info.labels_per_token:
            return np.array(self._labels[self._tokens_of(row)])
        width = len(self._labels) // max(1, len(self))
        return np.array(self._labels[row * width : (row + 1) * width])

    @property
    def flat_ids(self) -> np.ndarray:
        """(tokens,) int32, all rows end to end."""
        return self._ids

    @property
    def highest_id(self) -> int:
        """The highest number of a token in any row."""
        return int(self._ids.max())

    def row_at(self, token: int) -> int:
        """The row that holds a token, by its place among all."""
        return int(np.searchsorted(self._ends, token, side="right"))

    def where(self, row: int) -> str:
        """`file.jsonl:17`"""
        file, line = self._places[row]
        return f"{self._info.files[file]}:{line}"

    def prompt_and_target(self, row: int) -> tuple[list[int], list[int]]:
        """Ids before the last answer, and of the answer without its stop token."""
        ids, targets = self[row]
        start, end = last_run(targets.tolist())
        target = ids[start:end].tolist()
        if target and target[-1] in self._info.stops:
            target.pop()
        return ids[:start].tolist(), target


def last_run(targets: Sequence[bool]) -> tuple[int, int]:
    """Start and end of the last unbroken run of targets: the last answer with its stop token; (0, 0) without any."""
    end = len(targets)
    while end and not targets[end - 1]:
        end -= 1
    start = end
    while start and targets[start - 1]:
        start -= 1
    return start, end


@dataclass(frozen=True)
class PackedRows:
    """Rows as they are written, small on their way from another process."""

    rows: list[tuple[bytes, bytes, bytes, bytes]]  # of each: ids, targets, segments, labels
    counts: list[int]  # of each: what its loss is a sum over
    source_lengths: list[int]  # of each pair
    places: list[tuple[int, int]]  # of each: file number and line


def pack(rows: Sequence[TokenRow], places: Sequence[tuple[int, int]]) -> PackedRows:
    """Rows, and the file number and line of each."""
    return PackedRows(
        [
            (
                array("i", row.ids).tobytes(),
                bytes(row.targets),
                bytes(row.segments),
                array("f", row.labels).tobytes() if row.labels else b"",
            )
            for row in rows
        ],
        [row.count for row in rows],
        [row.source_length for row in rows if row.source_length is not None],
        [*places],
    )


class SplitWriter:
    """Appends rows to the arrays of one split."""

    def __init__(
        self,
        folder: Path,
        name: str,
        files: Sequence[Path],
        stops: tuple[int, ...],
        labels_per_token: bool,
        stack: ExitStack,
    ):
        self._arrays: dict[str, BinaryIO] = {
            part: stack.enter_context(_file(folder, name, part).open("wb", buffering=2**20)) for part in _ARRAYS
        }
        self._files, self._stops = tuple(file.name for file in files), stops
        self._labels_per_token = labels_per_token
        self._hash = sha256()
        self._sizes = dict.fromkeys(_ARRAYS, 0)
        self._rows = self._tokens = self._trained = 0

    def add(self, packed: PackedRows) -> None:
        ids, targets, segments, labels = ([row[place] for row in packed.rows] for place in range(4))
        ends = (self._tokens + np.cumsum([len(own) for own in ids]) // _WIDTH).astype(np.int64).tobytes()
        content = {
            "ids": b"".join(ids),
            "targets": b"".join(targets),
            "segments": b"".join(segments),
            "ends": ends,
            "source_lengths": np.array(packed.source_lengths, np.int32).tobytes(),
            "counts": np.array(packed.counts, np.int32).tobytes(),
            "labels": b"".join(labels),
            "places": np.array(packed.places, np.int64).tobytes(),
        }
        for name, kind in _ARRAYS.items():
            self._sizes[name] += len(content[name]) // np.dtype(kind).itemsize
            self._arrays[name].write(content[name])
        self._rows += len(packed.rows)
        self._tokens = self._sizes["ids"]
        self._trained += sum(packed.counts)
        by_row = (ends[place : place + 8] for place in range(0, len(ends), 8))
        whole = zip(ids, targets, segments, by_row, labels, strict=True)
        self._hash.update(b"".join(chain.from_iterable(whole)))

    def close(self) -> SplitInfo:
        for file in self._arrays.values():
            file.flush()
        counts = self._rows, self._tokens, self._trained
        fingerprint = self._hash.hexdigest()
        return SplitInfo(*counts, fingerprint, self._files, self._stops, self._sizes, self._labels_per_token)


def _file(folder: Path, name: str, part: str) -> Path:
    return folder / f"{name}.{part}"


class Features:
    """Vectors of rows (N, D), or states of their tokens (T, D) with the rows' ends (N,).

    Numbers are float32, or bfloat16 as int16, which numpy has no other name for.
    """

    def __init__(self, numbers: np.ndarray, ends: np.ndarray | None = None, held: Lock | None = None):
        self.numbers, self.ends, self._held = numbers, ends, held

    def of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of some rows, side by side."""
        if self.ends is None:
            chosen: np.ndarray = self.numbers[np.asarray(rows)]
            return chosen
        starts = [int(self.ends[row - 1]) if row else 0 for row in rows]
        return np.concatenate([self.numbers[start : self.ends[row]] for start, row in zip(starts, rows, strict=True)])
