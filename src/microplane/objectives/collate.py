"""Rows side by side, as a model takes them: what all objectives collate with, and the loop over a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from microplane.data.batch_plan import packed_by_length
from microplane.data.progress import Progress
from microplane.data.store import Dataset
from microplane.models.contract import Model, device_of, in_eval_mode
from microplane.nn.rows import Rows
from microplane.objectives.base import B, Objective


def rows_of(rows: Sequence[np.ndarray], segments: Sequence[np.ndarray] = ()) -> Rows:
    """Rows of token ids, side by side.

    Args:
        segments: of each row, which of its tokens belong to a second text; noted only if one does.
    """
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    lengths = tuple(len(row) for row in rows)
    packed = Rows(ids, torch.cat([torch.arange(length) for length in lengths]), lengths)
    second = np.concatenate(segments) if segments else np.empty(0, np.bool_)
    return replace(packed, types=torch.from_numpy(second.astype(np.int64))) if second.any() else packed


def features_of(dataset: Dataset, indices: Sequence[int]) -> Tensor | None:
    """What was computed of these rows before: of their tokens (T, D), or pooled (B, D); None if nothing was."""
    if dataset.features is None:
        return None
    tensor = torch.from_numpy(dataset.features.of(indices))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor  # numpy has no bfloat16


def batch_of(objective: Objective[B], model: nn.Module, dataset: Dataset, indices: Sequence[int]) -> B:
    """Rows by their numbers, where the model is."""
    batch, device = objective.collate(dataset, indices), device_of(model)
    return batch if device.type == "cpu" else batch.to(device)


@torch.no_grad()
def for_each_batch(
    objective: Objective[B],
    model: Model,
    dataset: Dataset,
    batch_tokens: int,
    visit: Callable[[list[int], B], None],
    progress: Progress | None = None,
    share: tuple[int, int] = (0, 1),
    same_count: bool = False,
) -> int:
    """Call `visit` with the row numbers and the batch of all rows of a data set, the longest first, without dropout and
    gradients. The order is always the same, so sums over it have always the same bits.

    Args:
        batch_tokens: tokens in a batch; a longer row makes one alone.
        share: (r, n) for every n-th batch only, from number r on.
        same_count: visit as many for every r: the last batch once more, after all others, where there would be fewer.

    Returns:
        The number of batches of all shares.
    """
    done, (first, step) = 0, share
    batches = packed_by_length(dataset.lengths, batch_tokens)
    again = -len(batches) % step if same_count else 0
    with in_eval_mode(model):
        for number, indices in enumerate(batches + batches[-1:] * again):
            if number % step == first:
                visit(indices, batch_of(objective, model, dataset, indices))
            if number >= len(batches):
                continue
            done += len(indices)
            if progress:
                progress(done, len(dataset))
    return len(batches)
