"""Attention over rows of unequal length: causal, in both directions, or from one set of rows to another; with grouped
heads, windows, soft-capping, added biases, dropout, prefixes and a cache.

Shapes: T tokens in all, B rows, S longest row of queries, L longest row of keys (with what a cache holds), H heads,
KV heads of keys and values, Dh width of a head, P length of a prefix.

In causal attention no mask for rows of unequal length is needed: a cell past a row's end lies in the future of all
its tokens. Elsewhere such cells are hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from microplane.nn.cache import Cache
from microplane.nn.ops import row_attention
from microplane.nn.ops.pointwise import softmax
from microplane.nn.rows import Rows, from_heads, to_heads
from microplane.nn.selective_recompute import unkept

CELLS = 1 << 21  # scores computed at once: more leave the caches, and beyond 32 MB each array is new memory to map
LONG = 1024  # rows longer than this go through torch's own attention, which never holds all (S, L) scores

Prefix = tuple[Tensor, Tensor]  # keys and values (KV, P, Dh) that every row sees before its own


class Sight:
    """Which keys each query sees. One is made for a forward pass and shared by all layers that see alike.

    Causal: a query at position p sees keys at positions j with p - window < j <= p.
    Not causal: it sees all keys of its row, or those with |p - j| < window.
    Of other rows (`keys`, cross-attention): it sees all keys of the row that belongs to its own.
    """

    def __init__(
        self,
        rows: Rows,
        starts: Sequence[int] | None = None,
        window: int | None = None,
        causal: bool = True,
        keys: Sequence[int] | None = None,
    ):
        assert keys is None or (not causal and window is None), "what is seen of other rows has no order"
        self.rows = rows
        self.starts = starts if starts is not None and any(starts) and keys is None else None  # tokens in the cache
        self.window = window
        self.causal = causal
        self.keys = tuple(keys) if keys is not None else None  # lengths of the other rows

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """(B,) keys in each row, with those in the cache."""
        if self.keys is not None:
            return self.keys
        if self.starts is None:
            return self.rows.lengths
        return tuple(start + new for start, new in zip(self.starts, self.rows.lengths, strict=True))

    @property
    def longest(self) -> int:
        """L."""
        return max(self.key_lengths)

    @property
    def plain(self) -> bool:
        """Causal and nothing else, so that torch's own causal attention applies."""
        return self.causal and self.starts is None and self._wide

    @property
    def by_row(self) -> bool:
        """Each row is seen whole, or up to the query's own place, and is not long."""
        return self.starts is None and self._wide and max(self.rows.longest, self.longest) <= LONG

    @property
    def open(self) -> bool:
        """Every query sees every cell of the rectangle, so that no mask is needed."""
        if self.causal:
            return self.plain and self.rows.longest == 1
        return self._wide and len(set(self.key_lengths)) == 1

    @property
    def _wide(self) -> bool:
        return self.window is None or self.window >= self.longest

    @cached_property
    def visible(self) -> Tensor:
        """bool (B, 1, S, L), with 1 in place of B or S where all rows or queries see alike."""
        key = torch.arange(self.longest)
        query = self._query_places()[:, None, :, None]  # (B or 1, 1, S, 1)
        if self.causal:
            seen = key <= query
            return seen if self.window is None else seen & (key > query - self.window)
        seen = (key < torch.tensor(self.key_lengths)[:, None])[:, None, None]  # (B, 1, 1, L)
        return seen if self._wide else seen & ((key - query).abs() < (self.window or 0))

    def _query_places(self) -> Tensor:
        """(B, S), or (1, S) where all rows are alike."""
        new = torch.arange(self.rows.longest)[None]
        lengths = torch.tensor(self.rows.lengths)[:, None]
        if self.starts is not None:
            # A cell past its row's end looks from the row's last token, for a query that sees nothing would be a NaN.
            return torch.tensor(list(self.starts))[:, None] + torch.minimum(new, lengths - 1)
        return new if self.causal else torch.minimum(new, lengths - 1)

    def added(self, like: Tensor) -> Tensor:
        """The same as numbers to add to scores: 0 where visible, else minus infinity; in the format of `like`."""
        if self._added is None or self._added.dtype != like.dtype:
            hidden = torch.zeros(self.visible.shape, dtype=like.dtype)
            self._added = hidden.masked_fill_(~self.visible, -math.inf).to(like.device)
        return self._added

    _added: Tensor | None = None

    def biased(self, bias: Tensor, like: Tensor) -> Tensor:
        """`bias` (H, S, L) or (B, H, S, L) and `added` in one, made once for all layers that share the bias."""
        made_of, made = self._biased
        if made is None or made_of is not bias or made.dtype != like.dtype:
            made = bias.to(like.dtype) if self.open else bias.to(like.dtype) + self.added(like)
            self._biased = bias, made
        return made

    _biased: tuple[Tensor | None, Tensor | None] = (None, None)


def attend(
    q: Tensor,  # (T, H, Dh)
    k: Tensor,  # (T, KV, Dh)
    v: Tensor,  # (T, KV, Dh)
    sight: Sight,
    scale: float,
    softcap: float | None = None,
    cache: Cache | None = None,
    layer: int = 0,
    bias: Tensor | None = None,  # (H, S, L) or (B, H, S, L), added to the scores
    dropout: float = 0.0,
    prefix: Prefix | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v, per row and head: (T, H, Dh). With a cache, k and v are appended to it first.

    `softcap` c turns each score s into c tanh(s / c) (arXiv 2408.00118, 2.1).
    """
    rows = sight.rows
    if cache is None and _by_row(q, k, v, sight, softcap, bias, dropout, prefix):
        return unkept(_attend_by_row, q, k, v, sight, scale)
    if cache is None:
        keys, values = to_heads(k, rows), to_heads(v, rows)  # (B, KV, S, Dh)
    else:
        keys, values = cache.append(layer, k, v, rows)  # (B, KV, L, Dh)
    return attend_to(q, keys, values, sight, scale, softcap, bias, dropout, prefix)


def attend_to(
    q: Tensor,  # (T, H, Dh)
    keys: Tensor,  # (B, KV, L, Dh)
    values: Tensor,  # (B, KV, L, Dh)
    sight: Sight,
    scale: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
) -> Tensor:
    """`attend` to keys and values that stand in a rectangle already, as those of other rows do: (T, H, Dh)."""
    rows = sight.rows
    if _by_row(q, keys, values, sight, softcap, bias, dropout, prefix):
        return unkept(_attend_by_row, q, keys, values, sight, scale)
    queries = to_heads(q, rows)  # (B, H, S, Dh)
    if prefix is not None:
        keys, values = (
            torch.cat([own.to(x.dtype).expand(len(x), -1, -1, -1), x], 2)
            for own, x in zip(prefix, (keys, values), strict=True)
        )
    if max(rows.longest, sight.longest) > LONG and softcap is None and not dropout:
        causal = sight.plain and bias is None and prefix is None
        mask = None if causal else _mask(queries, sight, bias, prefix)
        mixed = _attend_long(queries, keys, values, mask, scale, causal)
    else:
        mask = _mask(queries, sight, bias, prefix)
        mixed = unkept(_attend_short, queries, keys, values, mask, scale, softcap, dropout)
    return from_heads(mixed, rows)


def _by_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sight: Sight,
    softcap: float | None,
    bias: Tensor | None,
    dropout: float,
    prefix: Prefix | None,
) -> bool:
    """Whether this is the case that nn/ops/row_attention.py has compiled."""
    plain = softcap is None and bias is None and prefix is None and not dropout
    return plain and sight.by_row and row_attention.usable(q, k, v)


def _attend_by_row(q: Tensor, k: Tensor, v: Tensor, sight: Sight, scale: float) -> Tensor:
    return row_attention.row_attention(q, k, v, sight.rows.lengths, sight.key_lengths, sight.causal, scale)


def _mask(like: Tensor, sight: Sight, bias: Tensor | None, prefix: Prefix | None) -> Tensor | None:
    """What is added to the scores: the bias, and minus infinity at keys that are not seen; None for nothing.

    (B, H, S, L), with 1 in place of B, H or S where all are alike.
    """
    mask = sight.biased(bias, like) if bias is not None else None if sight.open else sight.added(like)
    if mask is not None and mask.dim() == 3:
        mask = mask[None]
    if mask is not None and prefix is not None:
        mask = F.pad(mask, (prefix[0].shape[1], 0))
    return mask


def _attend_short(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None, dropout: float
) -> Tensor:
    """Some rows at a time, or some heads of one row where that alone is much."""
    B, H, S, _ = q.shape
    KV, L = k.shape[1:3]
    dim, count = (0, B) if B > 1 else (1, KV)
    at_once = max(1, CELLS * count // max(1, B * H * S * L))
    if at_once >= count:
        return _attend_at_once(q, k, v, mask, scale, softcap, dropout)
    parts = []
    for start in range(0, count, at_once):
        n = min(at_once, count - start)
        own, of = (k.narrow(dim, start, n), v.narrow(dim, start, n)), q.shape[dim] // count
        part = q.narrow(dim, start * of, n * of)
        masked = mask if mask is None or mask.shape[dim] == 1 else mask.narrow(dim, start * of, n * of)
        parts.append(_attend_short(part, *own, masked, scale, softcap, dropout))
    return torch.cat(parts, dim)


def _attend_at_once(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None, dropout: float
) -> Tensor:
    """Plain batched products, the heads of a group stacked so that k and v are never repeated."""
    B, H, S, Dh = q.shape
    KV, L = k.shape[1:3]
    stacked = (q if scale == 1.0 else q * scale).reshape(B * KV, H // KV * S, Dh)
    k, v = k.reshape(B * KV, L, Dh), v.reshape(B * KV, L, Dh)
    scores = torch.bmm(stacked, k.transpose(1, 2)).view(B, H, S, L)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    shares = softmax(scores, mask, dropout)
    return torch.bmm(shares.view(B * KV, H // KV * S, L), v).view(B, H, S, Dh)


def _attend_long(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    G = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)  # small beside the scores
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
    keys: Sequence[int] | None = None,
    bias: Tensor | None = None,  # (H, S, L)
) -> Tensor:
    """`attend` without a cache, written as the formula reads: one row after the other, k and v repeated."""
    G = q.shape[1] // k.shape[1]
    mixed = []
    others = (x.split(tuple(keys or rows.lengths)) for x in (k, v))
    for q_row, k_row, v_row in zip(q.split(rows.lengths), *others, strict=True):
        k_row, v_row = k_row.repeat_interleave(G, dim=1), v_row.repeat_interleave(G, dim=1)  # (n, H, Dh)
        scores = torch.einsum("ihd,jhd->hij", q_row, k_row) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias[:, : len(q_row), : len(k_row)]
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if keys is None:
            ago = torch.arange(len(q_row))[:, None] - torch.arange(len(q_row))[None]  # (n, n)
            hidden = (ago if causal else ago.abs()) >= (window or len(q_row))
            wide = wide.masked_fill(hidden | (ago < 0) if causal else hidden, -math.inf)
        mixed.append(torch.einsum("hij,jhd->ihd", wide.softmax(-1).to(q.dtype), v_row))
    return torch.cat(mixed)
