"""Relative position biases of T5 (arXiv 1910.10683, 2.1): a learned number per head and distance, added to the scores.

Small distances have a bucket each. Larger ones share buckets that become wider with the logarithm of the distance, and
all beyond `max_distance` share the last. Shapes: B rows, H heads, S longest row of queries, L longest row of keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from microplane.device import put
from microplane.nn.attention import MaskSpec
from microplane.nn.ops.autograd import apply


def bucket_of(distance: Tensor, buckets: int, max_distance: int, causal: bool) -> Tensor:
    """The bucket of each distance (position of the key - position of the query): int64 to int64, of any shape.

    Causal: all keys after the query share bucket 0. Otherwise they have the upper half of the buckets.
    """
    first: Tensor | int = 0
    if causal:
        away = (-distance).clamp(min=0)
    else:
        buckets //= 2
        first = (distance > 0) * buckets
        away = distance.abs()
    exact = buckets // 2
    # in float32, as the models were trained: at a bucket's edge the last bit decides
    growth = torch.log(away.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + growth.long()).clamp(max=buckets - 1)
    return first + torch.where(away < exact, away, far)


class RelativeBias(nn.Module):
    """The trained table (buckets, H); calling it gives the bias of a forward pass."""

    def __init__(self, buckets: int, max_distance: int, heads: int, causal: bool):
        super().__init__()
        self.max_distance, self.causal = max_distance, causal
        self.weight = nn.Parameter(torch.empty(buckets, heads))

    def forward(self, mask_spec: MaskSpec) -> Tensor:
        """(H, S, L), or (B, H, S, L) where rows have unequal numbers of tokens in the cache."""
        S, L = mask_spec.rows.longest, mask_spec.longest
        starts = set(mask_spec.starts or [0])
        if len(starts) > 1:
            queries = torch.tensor(mask_spec.starts)[:, None, None] + torch.arange(S)[None, :, None]  # (B, S, 1)
            return self._of(torch.arange(L) - queries).permute(0, 3, 1, 2)
        (start,) = starts
        distances = torch.arange(1 - S - start, L - start)  # (S + L - 1,), all that there are
        return apply(_Diagonals, self._of(distances).t(), S, L)

    def of_distances(self, count: int) -> Tensor:
        """The bias of keys that stand 0 .. count - 1 before the query: (H, count)."""
        return self._of(-torch.arange(count)).t()

    def _of(self, distance: Tensor) -> Tensor:
        """(...) -> (..., H)."""
        bucket = bucket_of(distance, len(self.weight), self.max_distance, self.causal)
        return self.weight[put(bucket, self.weight.device)]

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, max_distance={self.max_distance}, causal={self.causal}"


class _Diagonals(torch.autograd.Function):
    """(H, S + L - 1) -> (H, S, L), whose diagonals are the numbers given: cell (i, j) holds number j - i + S - 1.

    Backward sums the diagonals: written with rows shifted by one each they stand in columns. An index_add over all
    cells, which autograd would make of a lookup, runs number by number.
    """

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, S: int, L: int) -> Tensor:
        return numbers.contiguous().unfold(1, L, 1).flip(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        H, S, L = grad.shape
        W = S + L - 1
        shifted = grad.new_zeros(H, S * W)
        # row i begins at i * W + (S - 1 - i): each row of the strided view is one cell short of a whole one
        shifted.as_strided((H, S, L), (S * W, max(W - 1, 1), 1), S - 1).copy_(grad)
        return shifted.view(H, S, W).sum(1), None, None
