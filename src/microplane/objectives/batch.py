"""What is trained: the next token of a row or of a pair's target, or the labels of a row.

Shapes: T tokens in all, K trained ones, B rows, C classes, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microplane.nn.rows import Pairs, Rows

if TYPE_CHECKING:
    from microplane.data.preparing.load_splits import Dataset


@dataclass(frozen=True)
class Batch:
    """Rows side by side and what is to be predicted."""

    rows: Rows | Pairs
    before: Tensor  # (K,) int64: index in T of the token before each trained one
    targets: Tensor  # (K,) int64: the trained tokens
    kept: Tensor | None = None  # (T, D): what enters the lowest block that trains, where it was computed before

    @property
    def count(self) -> int:
        """What the loss is a sum over."""
        return len(self.targets)


@dataclass(frozen=True)
class LabelBatch:
    """Rows side by side and their labels."""

    rows: Rows
    labels: Tensor  # float32: (B,) classes or numbers, (B, C) of several classes, (T,) of tokens
    count: int  # rows, or labelled tokens
    kept: Tensor | None = None  # (T, D) as of a Batch, or (B, D): the rows' pooled vectors


def make_batch(dataset: Dataset, indices: Sequence[int]) -> Batch | LabelBatch:
    """Rows of a data set side by side, with what is to be predicted."""
    pairs = [dataset[index] for index in indices]
    kept = None if dataset.features is None else _as_tensor(dataset.features.of(indices))
    if dataset.shape.kind == "labels":
        labels = [dataset.labels(index) for index in indices]
        if dataset.shape.task == "multilabel":
            made = torch.from_numpy(np.stack(labels))
        else:
            made = torch.from_numpy(np.concatenate(labels))
        count = int(dataset.trained_counts[list(indices)].sum())
        return LabelBatch(_segmented(pairs), made, count, kept)
    if dataset.shape.kind == "pairs":
        return _pairs(pairs, dataset.shape.start or 0)
    rows = _rows([ids for ids, _ in pairs])
    trained = torch.from_numpy(np.flatnonzero(np.concatenate([mask for _, mask in pairs])))
    return Batch(rows, trained - 1, rows.ids[trained], kept)


def _as_tensor(numbers: np.ndarray) -> Tensor:
    """numpy has no bfloat16: its bits come as int16."""
    tensor = torch.from_numpy(numbers)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def _rows(rows: Sequence[np.ndarray]) -> Rows:
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    lengths = tuple(len(row) for row in rows)
    return Rows(ids, torch.cat([torch.arange(length) for length in lengths]), lengths)


def _segmented(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Rows:
    """Rows of one text or of two, with what the data notes of segments."""
    made, second = _rows([ids for ids, _ in rows]), np.concatenate([mask for _, mask in rows])
    return replace(made, types=torch.from_numpy(second.astype(np.int64))) if second.any() else made


def _pairs(rows: Sequence[tuple[np.ndarray, np.ndarray]], start: int) -> Batch:
    """Cut where the first trained token stands. The decoder reads its start token and the target but for its last."""
    cuts = [int(np.argmax(mask)) for _, mask in rows]
    sources = [ids[:cut] for (ids, _), cut in zip(rows, cuts, strict=True)]
    targets = [ids[cut:] for (ids, _), cut in zip(rows, cuts, strict=True)]
    target = _rows([np.concatenate([[start], ids[:-1]]) for ids in targets])
    wanted = torch.from_numpy(np.concatenate(targets).astype(np.int64))
    return Batch(Pairs(_rows(sources), target), torch.arange(len(wanted)), wanted)
