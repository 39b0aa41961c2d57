"""Causal self-attention over rows of unequal length, with grouped heads, sliding windows, soft-capping and a cache.

Shapes: T tokens in all, B rows, S longest row of new tokens, L longest row with what a cache holds (L = S without one),
H heads, KV heads of keys and values, G = H / KV, Dh width of a head.

No mask for rows of unequal length is needed: a cell past a row's end lies in the future of all its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from microplane.nn.cache import Cache
from microplane.nn.rows import Rows, from_grid, to_grid

LONG = 1024  # rows longer than this go through torch's own attention, which never holds all (S, L) scores


class Sight:
    """Which keys each query sees. One is made for a forward pass and shared by all layers with the same window.

    A query at position p sees keys at positions j with p - window < j <= p.
    """

    def __init__(self, rows: Rows, starts: Sequence[int] | None = None, window: int | None = None):
        self.rows = rows
        self.starts = starts if starts is not None and any(starts) else None  # tokens of each row in the cache
        self.window = window

    @property
    def longest(self) -> int:
        """L."""
        if self.starts is None:
            return self.rows.longest
        return max(start + new for start, new in zip(self.starts, self.rows.lengths, strict=True))

    @property
    def plain(self) -> bool:
        """Causal and nothing else, so that torch's own causal attention applies."""
        return self.starts is None and (self.window is None or self.window >= self.rows.longest)

    @cached_property
    def visible(self) -> Tensor:
        """bool (B, 1, S, L), or (1, 1, S, L) where all rows are alike."""
        new = torch.arange(self.rows.longest)[None]  # (1, S)
        if self.starts is not None:
            # A cell past its row's end looks from the row's last token, for a query that sees nothing would be a NaN.
            lengths = torch.tensor(self.rows.lengths)[:, None]
            new = torch.tensor(list(self.starts))[:, None] + torch.minimum(new, lengths - 1)  # (B, S)
        query, key = new[:, None, :, None], torch.arange(self.longest)
        seen = key <= query
        return seen if self.window is None else seen & (key > query - self.window)

    def added(self, like: Tensor) -> Tensor:
        """The same as numbers to add to scores: 0 where visible, else minus infinity; in the format of `like`."""
        if self._added is None or self._added.dtype != like.dtype:
            hidden = torch.zeros(self.visible.shape, dtype=like.dtype)
            self._added = hidden.masked_fill_(~self.visible, -math.inf).to(like.device)
        return self._added

    _added: Tensor | None = None


def attend(
    q: Tensor,  # (T, H, Dh)
    k: Tensor,  # (T, KV, Dh)
    v: Tensor,  # (T, KV, Dh)
    sight: Sight,
    scale: float,
    softcap: float | None = None,
    cache: Cache | None = None,
    layer: int = 0,
) -> Tensor:
    """softmax(scale q k^T) v, per row and head: (T, H, Dh). With a cache, k and v are appended to it first.

    `softcap` c turns each score s into c tanh(s / c) (arXiv 2408.00118, 2.1).
    """
    rows = sight.rows
    queries = to_grid(q, rows).transpose(1, 2)  # (B, H, S, Dh)
    if cache is None:
        keys, values = to_grid(k, rows).transpose(1, 2), to_grid(v, rows).transpose(1, 2)  # (B, KV, S, Dh)
    else:
        keys, values = cache.append(layer, k, v, rows)  # (B, KV, L, Dh)
    if rows.longest > LONG and softcap is None:
        mixed = _attend_long(queries, keys, values, sight, scale)
    else:
        mixed = _attend_short(queries, keys, values, sight, scale, softcap)
    return from_grid(mixed.transpose(1, 2), rows)


def _attend_short(q: Tensor, k: Tensor, v: Tensor, sight: Sight, scale: float, softcap: float | None) -> Tensor:
    """Plain batched products, the heads of a group stacked so that k and v are never repeated."""
    B, H, S, Dh = q.shape
    KV, L = k.shape[1:3]
    stacked = (q * scale).reshape(B * KV, H // KV * S, Dh)
    k, v = k.reshape(B * KV, L, Dh), v.reshape(B * KV, L, Dh)
    scores = torch.bmm(stacked, k.transpose(1, 2)).view(B, H, S, L)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if S > 1 or not sight.plain:
        scores = scores.add_(sight.added(scores))
    shares = scores.softmax(-1)  # of bfloat16, torch computes this in float32 and rounds the result
    return torch.bmm(shares.view(B * KV, H // KV * S, L), v).view(B, H, S, Dh)


def _attend_long(q: Tensor, k: Tensor, v: Tensor, sight: Sight, scale: float) -> Tensor:
    G = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)  # small beside the scores
    mask = None if sight.plain else sight.visible.to(q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=sight.plain, scale=scale)


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, window: int | None = None, softcap: float | None = None
) -> Tensor:
    """`attend` without a cache, written as the formula reads: one row after the other, k and v repeated."""
    G = q.shape[1] // k.shape[1]
    mixed = []
    for q_row, k_row, v_row in zip(*(x.split(rows.lengths) for x in (q, k, v)), strict=True):
        k_row, v_row = k_row.repeat_interleave(G, dim=1), v_row.repeat_interleave(G, dim=1)  # (n, H, Dh)
        scores = torch.einsum("ihd,jhd->hij", q_row, k_row) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        ago = torch.arange(len(q_row))[:, None] - torch.arange(len(q_row))[None]  # (n, n)
        hidden = (ago < 0) | (ago >= (window or len(q_row)))
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        shares = wide.masked_fill(hidden, -math.inf).softmax(-1).to(q.dtype)
        mixed.append(torch.einsum("hij,jhd->ihd", shares, v_row))
    return torch.cat(mixed)
