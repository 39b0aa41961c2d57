"""Attention to the own row and to a source row at once, under one softmax: T5Gemma 2's decoder (arXiv 2512.14856).

Shapes: T tokens in all, Ts tokens of all source rows, B rows, S longest row of queries, L longest row of own keys, Ls
longest source row, H heads, KV heads of keys and values, Dh width of a head, P length of a prefix.

The keys of a rectangle are a prefix's, then the own row's, then the source's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from microplane.nn.attention import MaskSpec, Prefix, ends_of_groups
from microplane.nn.cache import Cache
from microplane.nn.head_attention import attend_in_heads
from microplane.nn.position import rotate
from microplane.nn.rows import from_heads, to_heads


@dataclass
class MergedMask:
    """Which keys each query may attend to: of its own row, and of the source. Layers of one window share it."""

    own: MaskSpec
    source: MaskSpec  # cross-attention

    @cached_property
    def groups(self) -> list[tuple[slice, MergedMask]]:
        """The rows in runs of similar length, by their numbers; all of them where a cache holds a rectangle already."""
        lengths = self.own.rows.lengths
        both = [own + source for own, source in zip(self.own.key_lengths, self.source.key_lengths, strict=True)]
        bounds = [0, *ends_of_groups(lengths, both)] if self.own.starts is None else [0, len(lengths)]
        if len(bounds) == 2:
            return [(slice(*bounds), self)]
        return [(slice(*pair), MergedMask(self.own.of(*pair), self.source.of(*pair))) for pair in pairwise(bounds)]

    def additive(self, like: Tensor) -> Tensor:
        """What is added to the scores: 0, or minus infinity: (B, 1, S, L + Ls), in the format of `like`."""
        if self._additive is None or self._additive.dtype != like.dtype:
            own, source = self.own.additive_mask(like), self.source.additive_mask(like)
            shape = len(self.own.rows.lengths), 1, self.own.rows.longest
            self._additive = torch.cat([x.expand(*shape, x.shape[-1]) for x in (own, source)], -1)
        return self._additive

    _additive: Tensor | None = None


def attend_merged(
    q: Tensor,  # (T, H, Dh)
    k: Tensor,  # (T, KV, Dh)
    v: Tensor,  # (T, KV, Dh)
    source: tuple[Tensor, Tensor],  # keys and values (Ts, KV, Dh) end to end, or as a cache holds them (B, KV, Ls, Dh)
    mask: MergedMask,
    scale: float,
    softcap: float | None = None,
    cache: Cache | None = None,
    layer: int = 0,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    angles: tuple[Tensor, Tensor] | None = None,  # that q and k are turned by first; the source's keys never are
) -> Tensor:
    """softmax(scale q [k; source keys]^T) [v; source values], per row and head: (T, H, Dh). With a cache, k and v are
    appended to it first."""
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    if cache is not None:
        k, v = cache.append(layer, k, v, mask.own.rows)  # (B, KV, L, Dh)
    mixed, query, own_key, source_key = [], 0, 0, 0
    for rows, part in mask.groups:
        ends = query + sum(part.own.rows.lengths), own_key + sum(part.own.key_lengths)
        source_end = source_key + sum(part.source.key_lengths)
        own = [_rectangle(x, slice(own_key, ends[1]), rows, part.own) for x in (k, v)]
        read = [_rectangle(x, slice(source_key, source_end), rows, part.source) for x in source]
        pairs = zip((prefix or (None, None)), own, read, strict=True)
        keys, values = (_joined(first, x, beside) for first, x, beside in pairs)
        queries = to_heads(q[query : ends[0]], part.own.rows)
        added = part.additive(queries)
        if prefix is not None:
            added = F.pad(added, (prefix[0].shape[1], 0))
        y = attend_in_heads(queries, keys, values, added, scale, softcap, dropout)
        mixed.append(from_heads(y, part.own.rows))
        query, own_key, source_key = *ends, source_end
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _rectangle(x: Tensor, tokens: slice, rows: slice, of: MaskSpec) -> Tensor:
    """Keys or values of a group of rows: (B, KV, L, Dh)."""
    return to_heads(x[tokens], of.key_rows) if x.dim() == 3 else x[rows, :, : of.longest]


def _joined(prefix: Tensor | None, own: Tensor, source: Tensor) -> Tensor:
    parts = [own, source.to(own.dtype)]
    if prefix is not None:
        parts.insert(0, prefix.to(own.dtype).expand(len(own), -1, -1, -1))
    return torch.cat(parts, 2)
