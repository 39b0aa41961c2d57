"""What lies below the blocks that train is computed once: filled in eval mode, kept in the user's cache, read from then
on through a memory map, so that every further pass over the rows costs only what trains.

    N   rows       T   tokens of all rows       D   model width

For a head on pooled vectors, these are kept (N, D); else the states that enter the lowest block that trains (T, D).
A folder `features/<key>` holds `numbers` and `about.json`. The key is of everything that decides the numbers: the
frozen weights themselves, the model's config, the rows, the boundary, the number format and the pooling.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microplane.cache.entries import hold
from microplane.cache.eviction import new_entry
from microplane.data.progress import Watcher
from microplane.data.store import Dataset, Features, TokenDataset
from microplane.errors import DataError
from microplane.files import cache_dir, file_sha256, reserve
from microplane.models.contract import Model
from microplane.models.heads import caches_pooled
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.base import AnyObjective, Batch
from microplane.objectives.collate import for_each_batch

VERSION = 1  # of what is stored; raise it when the code that decides it changes
LIMIT = 8 << 30  # bytes that one run may keep; and never more than a quarter of the free disk
BUDGET = 8192  # tokens computed at once
KINDS: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.bfloat16: np.int16}


@dataclass
class FeatureCacheInfo:
    """What result.json says of the features that a run used."""

    blocks: int  # lowest blocks that were computed once
    pooled: bool
    bytes: int
    found: bool  # all of them were there from a run before
    seconds: float = 0.0  # to compute or to check them
    folders: tuple[str, ...] = ()


def cache_features(
    objective: AnyObjective,
    model: Model,
    sets: dict[str, Dataset],
    passes: float,
    watch: Watcher,
    off: bool = False,
) -> tuple[dict[str, Dataset], dict[str, Any] | None]:
    """The rows with what lies below the boundary computed, or as they are where that does not pay or is not possible.

    Args:
        sets: data sets that are read again and again, by name.
        passes: over the training rows; a single one pays only if the features are there.
    """
    blocks = model.frozen
    stored = {name: rows for name, rows in sets.items() if isinstance(rows, TokenDataset)}
    if off or not blocks or len(stored) < len(sets):  # what is drawn anew in each epoch cannot be cached
        return sets, None
    started, cache = time.perf_counter(), FeatureCache(objective, model)
    found = {name: cache.open(rows, watch.say) for name, rows in stored.items()}
    whole = all(features is not None for features in found.values())
    info = FeatureCacheInfo(blocks, cache.pooled, sum(map(cache.bytes, stored.values())), whole)
    content = "the pooled vectors" if info.pooled else f"what leaves the {blocks} frozen blocks"
    if not whole:
        if passes <= 1:
            return sets, None
        if info.bytes > (limit := _limit()):
            size = f"{info.bytes / 1e9:.1f} GB of features would exceed {limit / 1e9:.1f} GB"
            watch.say(f"cache     off: {size} (8.6 GB, or a quarter of the free disk); computed anew in every step")
            return sets, None
        watch.say(f"cache     {content} of all rows are computed once: {info.bytes / 1e6:.0f} MB in {cache.place}")
        try:
            for name, rows in stored.items():
                found[name] = found[name] or cache.fill(rows, watch.progress(f"features of the {name} rows"))
        except DataError as error:
            watch.say(f"cache     off: {error}")
            return sets, None
    else:
        watch.say(f"cache     {content} of all rows are there from an earlier run: {info.bytes / 1e6:.0f} MB")
    info.seconds, info.folders = time.perf_counter() - started, tuple(cache.key(rows) for rows in stored.values())
    cached = {name: stored[name].with_features(features) for name, features in found.items() if features is not None}
    return dict(cached), asdict(info)


def _limit() -> int:
    above = next(folder for folder in (cache_dir(), *cache_dir().parents) if folder.exists())
    return min(LIMIT, shutil.disk_usage(above).free // 4)


class FeatureCache:
    """Computes, stores and opens the features of one model."""

    def __init__(self, objective: AnyObjective, model: Model):
        self.objective, self.model, self.pooled = objective, model, caches_pooled(model)
        self.dtype = model.compute or next(model.parameters()).dtype
        self.width = model.config.hidden_size
        self.place = cache_dir() / "features"
        self.weights = frozen_weights(model)

    def shape(self, rows: TokenDataset) -> tuple[int, int]:
        return (len(rows) if self.pooled else int(rows.lengths.sum()), self.width)

    def bytes(self, rows: TokenDataset) -> int:
        return int(self.shape(rows)[0] * self.width * self.dtype.itemsize)

    def key(self, rows: TokenDataset) -> str:
        head = self.model.task_head
        pooling = head.config.pooling if self.pooled and head is not None else None
        parts = [VERSION, self.weights, rows.fingerprint, self.model.frozen, str(self.dtype), pooling]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def open(self, rows: TokenDataset, say: Callable[[str], None]) -> Features | None:
        """What is there, if it is whole; what is damaged is deleted."""
        folder = self.place / self.key(rows)
        if not folder.is_dir():
            return None
        try:
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            if about["sha256"] == file_sha256(folder / "numbers"):
                return self._map(folder, rows)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        say(f"cache     {folder} is damaged: computed again")
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def _map(self, folder: Path, rows: TokenDataset, mode: Any = "r") -> Features:
        held = hold(folder)
        numbers = np.memmap(folder / "numbers", KINDS[self.dtype], mode, shape=self.shape(rows))
        return Features(numbers, None if self.pooled else np.cumsum(rows.lengths, dtype=np.int64), held)

    def fill(self, rows: TokenDataset, progress: Callable[[int, int], None]) -> Features:
        """Compute the features of all rows.

        Raises:
            DataError: if they cannot be written.
        """
        folder = self.place / self.key(rows)
        with new_entry(folder, "the features", f"{len(rows):,} rows as features") as temporary:
            reserve(temporary / "numbers", self.bytes(rows))
            features = self._map(temporary, rows, "r+")

            def put(indices: list[int], batch: Batch) -> None:
                self._put(features, indices, as_numbers(self._compute(batch.rows)), rows.lengths)

            for_each_batch(self.objective, self.model, rows, BUDGET, put, progress)
            features.numbers.flush()  # type: ignore[attr-defined]
            about = {"sha256": file_sha256(temporary / "numbers"), "shape": self.shape(rows), "dtype": str(self.dtype)}
            (temporary / "about.json").write_text(json.dumps(about), encoding="utf-8")
        return self._map(folder, rows)

    def _compute(self, rows: Rows | Pairs) -> Tensor:
        """Vectors of rows (B, D), or states of their tokens (T, D)."""
        assert isinstance(rows, Rows), "of pairs nothing is cached"
        head = self.model.task_head
        if self.pooled and head is not None:
            return head.pool(self.model(rows), rows)
        return self.model.lower(rows, self.model.frozen)

    def _put(self, features: Features, indices: list[int], numbers: np.ndarray, lengths: np.ndarray) -> None:
        if features.ends is None:
            features.numbers[indices] = numbers
            return
        start = 0
        for row in indices:
            end = int(features.ends[row])
            features.numbers[end - int(lengths[row]) : end] = numbers[start : start + int(lengths[row])]
            start += int(lengths[row])


def as_numbers(tensor: Tensor) -> np.ndarray:
    tensor = tensor.cpu()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()


def frozen_weights(model: Model) -> str:
    """A hash of the model's config and of every weight that stays as it is, which decide what features are."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
