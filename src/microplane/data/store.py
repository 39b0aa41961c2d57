"""Tokenised rows on disk: written one by one, read through memory maps, so their number does not matter.

A folder holds for each split `ids` (int32) and `trained` (bool) of all rows end to end, `ends` (int64), `counts` of
trained tokens or labels (int32), `labels` (float32) where there are any, and `places` (file number and line, int64),
as bare arrays in this machine's byte order. In rows with labels no token is trained: there `trained` marks the tokens
of a second text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from microplane.cache.entries import hold
from microplane.data.rendering.causal import Row, last_run
from microplane.data.row_kind import TEXT, Shape
from microplane.files import Lock

_ARRAYS: dict[str, Any] = {
    "ids": np.int32,
    "trained": np.bool_,
    "ends": np.int64,
    "counts": np.int32,
    "labels": np.float32,
    "places": np.int64,
}


@dataclass(frozen=True)
class Stored:
    """What is known of a split without opening its arrays."""

    rows: int
    tokens: int
    trained_tokens: int
    fingerprint: str  # sha256 of the tokens and what is trained; equal on every machine
    files: tuple[str, ...]  # names, by file number
    stops: tuple[int, ...]
    shape: Shape = TEXT
    labels: int = 0  # numbers in the array of labels


class TokenDataset:
    """The rows of one split as tokens.

    Attributes:
        lengths: tokens of each row, (N,) int32.
        trained_counts: trained tokens of each row, (N,) int32.
        fingerprint: of ids, masks and labels, equal for equal data on any machine.
        shape: whether a row goes on, is a pair, or has labels.
        features: what a frozen model makes of each row, where that was computed before.
    """

    features: Features | None = None

    def __init__(self, folder: Path, name: str, stored: Stored):
        self._stored, self._held = stored, hold(folder)  # it stays in the cache while it is read
        self.fingerprint, self.shape = stored.fingerprint, stored.shape
        sizes = {"ids": stored.tokens, "trained": stored.tokens, "places": 2 * stored.rows, "labels": stored.labels}
        maps = {}
        for array, kind in _ARRAYS.items():
            size = sizes.get(array, stored.rows)
            maps[array] = np.memmap(_file(folder, name, array), kind, "r") if size else np.empty(0, kind)
            if len(maps[array]) != sizes.get(array, stored.rows):
                raise ValueError(f"{name}.{array} has {len(maps[array])} items")
        self._ids, self._trained, self._places = maps["ids"], maps["trained"], maps["places"].reshape(-1, 2)
        self._labels = maps["labels"]
        self._ends = np.array(maps["ends"])
        self.lengths = np.diff(self._ends, prepend=0).astype(np.int32)
        self.trained_counts = np.array(maps["counts"])

    def __len__(self) -> int:
        return self._stored.rows

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids (length,) int32, and which of them are trained (length,) bool."""
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        end = int(self._ends[row])
        part = slice(end - int(self.lengths[row]), end)
        return np.array(self._ids[part]), np.array(self._trained[part])

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
        if self.shape.task == "tokens":
            end = int(self._ends[row])
            return np.array(self._labels[end - int(self.lengths[row]) : end])
        width = len(self._labels) // max(1, len(self))
        return np.array(self._labels[row * width : (row + 1) * width])

    @property
    def flat_ids(self) -> np.ndarray:
        """(tokens,) int32, all rows end to end."""
        return self._ids

    def row_at(self, token: int) -> int:
        """The row that holds a token, by its place among all."""
        return int(np.searchsorted(self._ends, token, side="right"))

    def where(self, row: int) -> str:
        """`file.jsonl:17`"""
        file, line = self._places[row]
        return f"{self._stored.files[file]}:{line}"

    def prompt_and_target(self, row: int) -> tuple[list[int], list[int]]:
        """Ids before the last answer, and of the answer without its stop token."""
        ids, trained = self[row]
        start, end = last_run(trained.tolist())
        target = ids[start:end].tolist()
        if target and target[-1] in self._stored.stops:
            target.pop()
        return ids[:start].tolist(), target


class SplitWriter:
    """Appends rows to the arrays of one split."""

    def __init__(
        self, folder: Path, name: str, files: Sequence[Path], stops: tuple[int, ...], shape: Shape, stack: ExitStack
    ):
        self._arrays: dict[str, BinaryIO] = {
            array: stack.enter_context(_file(folder, name, array).open("wb", buffering=2**20)) for array in _ARRAYS
        }
        self._files, self._stops, self._shape = tuple(file.name for file in files), stops, shape
        self._hash = sha256()
        self._rows = self._tokens = self._trained = self._labels = 0

    def add(self, row: Row, place: Sequence[int]) -> None:
        self._rows += 1
        self._tokens += len(row.ids)
        count = row.count
        self._trained += count
        self._labels += len(row.labels)
        values = {"ids": row.ids, "trained": row.trained, "ends": self._tokens, "counts": count, "places": place}
        values["labels"] = row.labels
        for array, kind in _ARRAYS.items():
            content = np.asarray(values[array], kind).tobytes()
            self._arrays[array].write(content)
            if array in ("ids", "trained", "ends", "labels"):
                self._hash.update(content)

    def close(self) -> Stored:
        for file in self._arrays.values():
            file.flush()
        fingerprint = self._hash.hexdigest()
        counts = self._rows, self._tokens, self._trained
        return Stored(*counts, fingerprint, self._files, self._stops, self._shape, self._labels)


def _file(folder: Path, name: str, array: str) -> Path:
    return folder / f"{name}.{array}"


class Features:
    """Vectors of rows (N, D), or states of their tokens (T, D) with the rows' ends (N,).

    Numbers are float32, or bfloat16 as int16, which numpy has no other name for.
    """

    def __init__(self, numbers: np.ndarray, ends: np.ndarray | None = None, held: Lock | None = None):
        self.numbers, self.ends, self._held = numbers, ends, held

    def of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of some rows, side by side."""
        if self.ends is None:
            return self.numbers[np.asarray(rows)]
        starts = [int(self.ends[row - 1]) if row else 0 for row in rows]
        return np.concatenate([self.numbers[start : self.ends[row]] for start, row in zip(starts, rows, strict=True)])
