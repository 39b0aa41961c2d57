"""What is trained: the next token, at the trained positions of a few rows.

Shapes: T tokens in all, K trained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from microplane.models.contract import Model
from microplane.nn.loss import chunked_cross_entropy, linear_cross_entropy
from microplane.nn.rows import Pairs, Rows

if TYPE_CHECKING:
    from microplane.data.dataset import TokenDataset


@dataclass(frozen=True)
class Batch:
    rows: Rows | Pairs
    before: Tensor  # (K,) int64: index in T (of the target rows) of the token before each trained one
    targets: Tensor  # (K,) int64: the trained tokens


def make_batch(dataset: TokenDataset, indices: Sequence[int]) -> Batch:
    """Rows of a data set side by side, with what is to be predicted."""
    pairs = [dataset[index] for index in indices]
    ids = torch.from_numpy(np.concatenate([ids for ids, _ in pairs]).astype(np.int64))
    trained = torch.from_numpy(np.flatnonzero(np.concatenate([mask for _, mask in pairs])))
    lengths = tuple(len(ids) for ids, _ in pairs)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Batch(Rows(ids, positions, lengths), trained - 1, ids[trained])


def loss_sum(model: Model, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The sum of -log p(token) over the trained tokens, float32; logits exist at their positions only."""
    hidden = model(batch.rows).index_select(0, batch.before)  # (K, D)
    if model.head is None or isinstance(model.head, nn.Linear):
        softcap, bias = model.config.final_logit_softcapping, model.head_bias
        return linear_cross_entropy(hidden, model.head_weight, batch.targets, softcap, label_smoothing, bias)
    return chunked_cross_entropy(hidden, model.logits, batch.targets, label_smoothing)
