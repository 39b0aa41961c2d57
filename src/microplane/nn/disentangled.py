"""Disentangled attention of DeBERTa (arXiv 2006.03654, equation 4; 2111.09543): what a token is and how far it is away
have vectors of their own, and a score is the sum of three products: of content with content, of the query's content
with the distance, and of the key's content with the distance.

    B   rows                          S   longest row              D   model width
    H   heads, of width Dh            W   distances, 2 S - 1       R   rows of the table that these have

Distances beyond half the buckets share them, wider with the logarithm. transformers computes the products with the
whole table and picks one of them for each pair of tokens. Here the table is laid out by distance first: what is picked
are then diagonals of the products, which need no index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from microplane.device import put
from microplane.errors import ModelError
from microplane.nn.layers import Embedding, LayerNorm
from microplane.nn.ops.autograd import apply

TERMS = ("c2p", "p2c")


@dataclass(frozen=True)
class Distances:
    """Of the configuration, what concerns distances."""

    span: int  # the table has a row for each of -span .. span - 1
    farthest: int  # a distance beyond counts as this
    bucketed: bool  # whether large distances share rows
    keys: bool = True  # "c2p": the query's content with the distance
    queries: bool = True  # "p2c": the key's content with the distance
    shared: bool = False  # whether the content's own projections serve the distances
    normed: bool = False  # whether the table is normed

    @property
    def terms(self) -> int:
        """How many products make a score."""
        return 1 + self.keys + self.queries

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], context: int) -> Distances | None:
        """From the fields of a config.json; None where scores are of contents alone.

        Raises:
            ModelError: for settings that are wrong or not supported.
        """
        told = fields.get("pos_att_type") or []
        kinds = [kind.strip() for kind in told.lower().split("|")] if isinstance(told, str) else told
        if not isinstance(kinds, list) or any(kind not in TERMS for kind in kinds):
            raise ModelError(f"pos_att_type = {told!r} in config.json: expected some of {' and '.join(TERMS)}")
        if bool(fields.get("relative_attention")) != bool(kinds):
            raise ModelError(
                f"relative_attention = {fields.get('relative_attention')!r} and pos_att_type = {told!r} in config.json:"
                " only both together are supported"
            )
        if not kinds:
            return None
        most, buckets = fields.get("max_relative_positions", -1), fields.get("position_buckets", -1)
        if type(most) is not int or type(buckets) is not int:
            raise ModelError(
                f"max_relative_positions = {most!r} and position_buckets = {buckets!r} in config.json: expected whole"
                " numbers"
            )
        farthest = most if most > 0 else context
        if 0 < buckets < 4 or (buckets > 0 and farthest - 1 <= buckets // 2):
            raise ModelError(f"position_buckets = {buckets} in config.json do not fit {farthest} distances")
        normed = "layer_norm" in [part.strip() for part in str(fields.get("norm_rel_ebd", "none")).lower().split("|")]
        shared = bool(fields.get("share_att_key", False))
        span = buckets if buckets > 0 else farthest
        return cls(span, farthest, buckets > 0, "c2p" in kinds, "p2c" in kinds, shared, normed)

    def to_hf(self) -> dict[str, Any]:
        """The fields of a config.json."""
        return {
            "relative_attention": True,
            "pos_att_type": [kind for kind, on in (("p2c", self.queries), ("c2p", self.keys)) if on],
            "max_relative_positions": self.farthest,
            "position_buckets": self.span if self.bucketed else -1,
            "norm_rel_ebd": "layer_norm" if self.normed else "none",
            "share_att_key": self.shared,
        }

    def row_of(self, distance: Tensor) -> Tensor:
        """The row of the table of each distance (position of the query - position of the key): int64, of any shape."""
        if self.bucketed:
            half = self.span // 2
            away = distance.abs().clamp(min=half)
            # in float32, as the models were trained: at a bucket's edge the last bit decides
            growth = torch.log(away / half) / torch.log(torch.tensor((self.farthest - 1) / half))
            far = (torch.ceil(growth * (half - 1)) + half).long() * distance.sign()
            distance = torch.where(distance.abs() <= half, distance, far)
        return (distance + self.span).clamp(0, 2 * self.span - 1)


class DistanceTable(nn.Module):
    """The trained vectors of distances; calling it gives those of the rows at hand."""

    def __init__(self, distances: Distances, width: int, eps: float):
        super().__init__()
        self.distances = distances
        self.table = Embedding(2 * distances.span, width)
        self.norm = LayerNorm(width, eps=eps) if distances.normed else None

    def forward(self, longest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Vectors (R, D), and for each of the distances S - 1, S - 2, .. 1 - S which of them it has (W,)."""
        rows = self.distances.row_of(torch.arange(longest - 1, -longest, -1))
        first, end = int(rows[-1]), int(rows[0]) + 1
        vectors = self.table.weight[first:end].to(dtype)
        vectors = vectors if self.norm is None else self.norm(vectors)
        return vectors, put(rows - first, vectors.device)


def distance_scores(keys: Tensor | None, queries: Tensor | None, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """What is added to the scores of the queries and keys of a rectangle, as `nn.attention.attend` asks for it.

    Args:
        keys: what the queries are multiplied with, by distance: (W, H, Dh), or None.
        queries: what the keys are multiplied with.
    """

    def bias(q: Tensor, k: Tensor) -> Tensor:  # (B, H, S, Dh), (B, H, S, Dh) -> (B, H, S, S)
        S, products = q.shape[2], []
        for content, table in ((q, keys), (k, None if queries is None else queries.flip(0))):
            if table is not None:
                outer = (len(table) + 1) // 2 - S  # of longer rows than these
                products.append(_products(content * scale, table[outer : len(table) - outer]))
        c2p = products[0] if keys is not None else None
        p2c = products[-1] if queries is not None else None
        summed: Tensor = apply(_Diagonals, c2p, p2c)
        return summed.transpose(0, 1)

    return bias


def _products(content: Tensor, table: Tensor) -> Tensor:
    """(B, H, S, Dh), (W, H, Dh) -> (H, B, S, W)."""
    B, H, S, Dh = content.shape
    by_head = content.transpose(0, 1).reshape(H, B * S, Dh)
    return torch.bmm(by_head, table.permute(1, 2, 0)).view(H, B, S, len(table))


class _Diagonals(torch.autograd.Function):
    """(H, B, S, W) each or None -> (H, B, S, S): cell (i, j) is number j - i + S - 1 of the first's row i, and number
    i - j + S - 1 of the second's row j."""

    @staticmethod
    def forward(ctx: Any, by_query: Tensor | None, by_key: Tensor | None) -> Tensor:
        ctx.there = by_query is not None, by_key is not None
        parts = [] if by_query is None else [_diagonals(by_query)]
        parts += [] if by_key is None else [_diagonals(by_key).transpose(-1, -2)]
        return parts[0] + parts[1] if len(parts) == 2 else parts[0].contiguous().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = []
        for there, own in zip(ctx.there, (grad, grad.transpose(-1, -2)), strict=True):
            spread = own.new_zeros(*own.shape[:-1], 2 * own.shape[-1] - 1) if there else None
            if spread is not None:
                _diagonals(spread).copy_(own)
            found.append(spread)
        return tuple(found)


def _diagonals(x: Tensor) -> Tensor:
    """A view of (H, B, S, W): (H, B, S, S), cell (i, j) being number j - i + S - 1 of row i."""
    H, B, S, W = x.shape
    assert x.is_contiguous()
    return x.as_strided((H, B, S, S), (B * S * W, S * W, max(W - 1, 1), 1), x.storage_offset() + S - 1)
