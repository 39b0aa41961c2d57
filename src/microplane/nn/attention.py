"""Attention over rows of unequal length: causal, in both directions, or from one set of rows to another; with grouped
heads, windows, soft-capping, added biases, dropout, prefixes and a cache.

Shapes: T tokens in all, B rows, S longest row of queries, L longest row of keys (with what a cache holds), H heads,
KV heads of keys and values, Dh width of a head, P length of a prefix.

Causal attention needs no mask for rows of unequal length: a cell past a row's end lies in the future of all its
tokens. In the other kinds such cells are masked. A rectangle holds rows of similar length only (`MaskSpec.groups`), so
that what is allocated follows the rows' own scores, and not the longest row's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from microplane.device import put
from microplane.nn.cache import Cache
from microplane.nn.head_attention import attend_by_torch, attend_in_heads, faster_by_torch
from microplane.nn.ops import cached_attention, row_attention
from microplane.nn.position import rotate
from microplane.nn.rows import Rows, from_heads, to_heads

WASTE = 1.5  # a rectangle of rows of unequal length holds at most so many times what its rows have
SMALL = 1 << 19  # numbers of one head: rectangles up to this size hold any rows, as more of them would take longer
PER_TOKEN = 128  # numbers of one head that a token has beside its scores: two vectors
LONG = 1024  # tokens of the longest rows that ops/row_attention.py is given

Prefix = tuple[Tensor, Tensor]  # keys and values (KV, P, Dh), prepended to those of every row
# Added to the scores: (H, S, L) or (B, H, S, L), or what makes that of queries (B, H, S, Dh) and keys (B, KV, L, Dh).
Bias = Tensor | Callable[[Tensor, Tensor], Tensor]
Window = int | tuple[int, int] | None


class MaskSpec:
    """Which keys each query may attend to. A forward pass makes one per kind of layer, and its layers share it.

    Causal: a query at position p attends to positions j with p - window < j <= p.
    Not causal: it attends to all keys of its row, or to those with |p - j| < window; where the window is two numbers,
    to those with p - j < first and j - p < second.
    Cross-attention (`keys` given): it attends to all keys of the source row that belongs to its own row.

    Args:
        rows: the queries.
        starts: how many tokens of each row the cache holds already.
        window: number of positions, of both sides where there are two; None for no limit.
        keys: of cross-attention, the lengths of the source rows.
        terms: how many products are summed to a score, each of which is held for a while.
    """

    def __init__(
        self,
        rows: Rows,
        starts: Sequence[int] | None = None,
        window: Window = None,
        causal: bool = True,
        keys: Sequence[int] | None = None,
        terms: int = 1,
    ):
        assert keys is None or (not causal and window is None), "cross-attention has neither an order nor a window"
        assert not (causal and isinstance(window, tuple)), "what is causal looks to one side"
        self.rows = rows
        self.starts = starts if starts is not None and any(starts) and keys is None else None
        self.window = window
        self.causal = causal
        self.keys = tuple(keys) if keys is not None else None
        self.terms = terms

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """(B,) number of keys of each row, with those in the cache."""
        if self.keys is not None:
            return self.keys
        if self.starts is None:
            return self.rows.lengths
        return tuple(start + new for start, new in zip(self.starts, self.rows.lengths, strict=True))

    @cached_property
    def key_rows(self) -> Rows:
        """The places of the keys of each row, without a cache."""
        return self.rows if self.keys is None else Rows.of_lengths(self.keys, self.rows.ids.device)

    @cached_property
    def groups(self) -> list[tuple[slice, MaskSpec]]:
        """The rows in runs of similar length, by their numbers; a single one of all rows where that does, or a cache
        holds a rectangle of them already. Cut in their order, so it is best if the longest come first."""
        if self.starts is not None:
            return [(slice(0, len(self.rows.lengths)), self)]
        bounds = [0, *ends_of_groups(self.rows.lengths, self.key_lengths, self.terms)]
        if len(bounds) == 2:
            return [(slice(*bounds), self)]
        return [(slice(*pair), self.of(*pair)) for pair in pairwise(bounds)]

    def of(self, first: int, end: int) -> MaskSpec:
        """The same for some of the rows."""
        own, before = self.rows.lengths[first:end], sum(self.rows.lengths[:first])
        tokens = slice(before, before + sum(own))
        rows = Rows(self.rows.ids[tokens], self.rows.positions[tokens], own)
        return MaskSpec(rows, None, self.window, self.causal, self.keys and self.keys[first:end], self.terms)

    @property
    def longest(self) -> int:
        """L, the largest number of keys."""
        return max(self.key_lengths)

    @property
    def is_plain_causal(self) -> bool:
        """True if it is causal without a cache or a window, so that torch's own causal attention applies."""
        return self.causal and self.starts is None and self._window_holds_all

    @property
    def can_run_per_row(self) -> bool:
        """True if ops/row_attention.py can do it: no cache, no window, and rows that are not long."""
        return self.starts is None and self._window_holds_all and max(self.rows.longest, self.longest) <= LONG

    @property
    def needs_no_mask(self) -> bool:
        """True if every query may attend to every cell of the rectangle of keys."""
        if self.causal:
            return self.is_plain_causal and self.rows.longest == 1
        return self._window_holds_all and len(set(self.key_lengths)) == 1

    @property
    def _window_holds_all(self) -> bool:
        return self.window is None or min(self._reach) >= self.longest

    @property
    def _reach(self) -> tuple[int, int]:
        """How far a query sees to each side, itself counted, where there is a window."""
        return self.window if isinstance(self.window, tuple) else (self.window or 0, self.window or 0)

    @cached_property
    def bool_mask(self) -> Tensor:
        """bool (B, 1, S, L) on the CPU, True where a query may attend; with 1 in place of B or S where all of them are
        alike."""
        key = torch.arange(self.longest)
        query = self._query_positions()[:, None, :, None]  # (B or 1, 1, S, 1)
        if self.causal:
            seen = key <= query
            return seen if self.window is None else seen & (key > query - self._reach[0])
        seen = (key < torch.tensor(self.key_lengths)[:, None])[:, None, None]  # (B, 1, 1, L)
        before, after = self._reach
        return seen if self._window_holds_all else seen & (query - key < before) & (key - query < after)

    def _query_positions(self) -> Tensor:
        """(B, S) int64, or (1, S) where all rows are alike."""
        new = torch.arange(self.rows.longest)[None]
        lengths = torch.tensor(self.rows.lengths)[:, None]
        if self.starts is not None:
            # A cell past its row's end gets the last token's position: a query without any key would give NaN.
            return torch.tensor(list(self.starts))[:, None] + torch.minimum(new, lengths - 1)
        return new if self.causal else torch.minimum(new, lengths - 1)

    def additive_mask(self, like: Tensor) -> Tensor:
        """`bool_mask` as numbers to add to the scores: 0 where True, else minus infinity; in the format of `like`."""
        if self._additive is None or self._additive.dtype != like.dtype:
            zeros = torch.zeros(self.bool_mask.shape, dtype=like.dtype)
            self._additive = put(zeros.masked_fill_(~self.bool_mask, -math.inf), like.device)
        return self._additive

    _additive: Tensor | None = None

    def biased_mask(self, bias: Tensor, like: Tensor) -> Tensor:
        """`additive_mask` plus `bias` (H, S, L) or (B, H, S, L): computed once for all layers that share the bias.

        The bias may be of longer rows too: it depends on the distance alone, so its beginning is that of these rows.
        """
        of, mask = self._biased
        if mask is None or of is not bias or mask.dtype != like.dtype:
            own = bias[..., : self.rows.longest, : self.longest].to(like.dtype)
            mask = own if self.needs_no_mask else own + self.additive_mask(like)
            self._biased = bias, mask
        return mask

    _biased: tuple[Tensor | None, Tensor | None] = (None, None)


def attend(
    q: Tensor,  # (T, H, Dh)
    k: Tensor,  # (T, KV, Dh)
    v: Tensor,  # (T, KV, Dh)
    mask_spec: MaskSpec,
    scale: float,
    softcap: float | None = None,
    cache: Cache | None = None,
    layer: int = 0,
    bias: Bias | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    angles: tuple[Tensor, Tensor] | None = None,  # that q and k are turned by first, `nn.position.rotate`
) -> Tensor:
    """softmax(scale q k^T + bias) v, per row and head: (T, H, Dh). With a cache, k and v are appended to it first.

    `softcap` c turns each score s into c tanh(s / c) (arXiv 2408.00118, 2.1).
    """
    plain = softcap is None and bias is None and prefix is None and not dropout and mask_spec.causal
    plain = plain and (angles is None or 2 * angles[0].shape[-1] == q.shape[-1])  # the whole head turns
    if cache is not None and plain and cached_attention.usable(q, mask_spec.rows, cache):
        where = mask_spec.rows, cache, layer
        assert not isinstance(mask_spec.window, tuple)
        return cached_attention.cached_attention(q, k, v, angles, *where, scale, mask_spec.window)
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    if cache is not None:
        k, v = cache.append(layer, k, v, mask_spec.rows)  # (B, KV, L, Dh)
    return attend_to(q, k, v, mask_spec, scale, softcap, bias, dropout, prefix)


def attend_to(
    q: Tensor,  # (T, H, Dh)
    keys: Tensor,  # (U, KV, Dh) end to end as the queries, or a rectangle (B, KV, L, Dh), as a cache holds it
    values: Tensor,  # as the keys
    mask_spec: MaskSpec,
    scale: float,
    softcap: float | None = None,
    bias: Bias | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
) -> Tensor:
    """`attend` to keys and values that are all there, as those of cross-attention are: (T, H, Dh)."""
    if _by_row(q, keys, values, mask_spec, softcap, bias, dropout, prefix):
        own, others = mask_spec.rows.lengths, mask_spec.key_lengths
        return row_attention.row_attention(q, keys, values, own, others, mask_spec.causal, scale)
    mixed = [
        _attend_in_rectangle(queries, k, v, own, scale, softcap, bias, dropout, prefix)
        for queries, k, v, own in _parts(q, keys, values, mask_spec)
    ]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _parts(
    q: Tensor, keys: Tensor, values: Tensor, mask_spec: MaskSpec
) -> Iterator[tuple[Tensor, Tensor, Tensor, MaskSpec]]:
    """Queries, keys and values of each group of rows: (Tg, H, Dh), and (Ug, KV, Dh) or (Bg, KV, Lg, Dh)."""
    if len(mask_spec.groups) == 1:
        yield q, keys, values, mask_spec
        return
    query = key = 0
    for rows, own in mask_spec.groups:
        queries = q[query : query + sum(own.rows.lengths)]
        query += len(queries)
        if keys.dim() == 3:
            used = slice(key, key + sum(own.key_lengths))
            key = used.stop
            yield queries, keys[used], values[used], own
        else:
            yield queries, keys[rows, :, : own.longest], values[rows, :, : own.longest], own


def _attend_in_rectangle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask_spec: MaskSpec,
    scale: float,
    softcap: float | None,
    bias: Bias | None,
    dropout: float,
    prefix: Prefix | None,
) -> Tensor:
    """`attend_to` of all rows in one rectangle for each head: (T, H, Dh)."""
    rows = mask_spec.rows
    keys, values = (to_heads(x, mask_spec.key_rows) if x.dim() == 3 else x for x in (k, v))  # (B, KV, L, Dh)
    queries = to_heads(q, rows)  # (B, H, S, Dh)
    if bias is not None and not isinstance(bias, Tensor):
        bias = bias(queries, keys)  # which sees no prefix: that is at no distance
    if prefix is not None:
        keys, values = (
            torch.cat([own.to(x.dtype).expand(len(x), -1, -1, -1), x], 2)
            for own, x in zip(prefix, (keys, values), strict=True)
        )
    plain = mask_spec.is_plain_causal and bias is None and prefix is None
    if plain and faster_by_torch(queries, keys, softcap, dropout):
        return from_heads(attend_by_torch(queries, keys, values, None, scale, causal=True), rows)
    mask = _mask(queries, mask_spec, bias, prefix)
    return from_heads(attend_in_heads(queries, keys, values, mask, scale, softcap, dropout), rows)


def _by_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask_spec: MaskSpec,
    softcap: float | None,
    bias: Bias | None,
    dropout: float,
    prefix: Prefix | None,
) -> bool:
    """True if nn/ops/row_attention.py can compute it."""
    plain = softcap is None and bias is None and prefix is None and not dropout
    return plain and mask_spec.can_run_per_row and row_attention.usable(q, k, v)


def _mask(like: Tensor, mask_spec: MaskSpec, bias: Tensor | None, prefix: Prefix | None) -> Tensor | None:
    """What is added to the scores: the bias, and minus infinity at masked keys; None for nothing.

    (B, H, S, L), with 1 in place of B, H or S where all of them are alike. Keys of the prefix are never masked.
    """
    if bias is not None:
        mask: Tensor | None = mask_spec.biased_mask(bias, like)
    else:
        mask = None if mask_spec.needs_no_mask else mask_spec.additive_mask(like)
    if mask is not None and mask.dim() == 3:
        mask = mask[None]
    if mask is not None and prefix is not None:
        mask = F.pad(mask, (prefix[0].shape[1], 0))
    return mask


def ends_of_groups(queries: Sequence[int], keys: Sequence[int], terms: int = 1) -> list[int]:
    """Where runs of rows end, each of which makes a rectangle that is small, or at most `WASTE` times what it holds."""

    def size(S: int, L: int) -> int:
        return S * L + PER_TOKEN * (S + L)

    ends, first, S, L, held = list[int](), 0, 0, 0, 0
    for row, own in enumerate(zip(queries, keys, strict=True)):
        wider, more = (max(S, own[0]), max(L, own[1])), held + size(*own)
        whole = (row + 1 - first) * size(*wider)
        if row > first and whole > SMALL // terms and whole > WASTE * more:
            ends.append(row)
            first, wider, more = row, own, size(*own)
        (S, L), held = wider, more
    return [*ends, len(queries)]
