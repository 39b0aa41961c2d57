"""Rows of tokens side by side, without padding: what every model takes.

Shapes: T tokens in all, B rows, S the longest row.

There is no padding token anywhere in training or generation. Linears, norms and the head see (T, D); only attention
needs a rectangle, of each head apart, and gets it by one gather (`to_heads`) whose backward is a gather too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from microplane.nn.ops.autograd import apply
from microplane.nn.ops.scratch import persistent


@dataclass(frozen=True)
class Rows:
    """B rows of unequal length, laid end to end."""

    ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, the place of each token in its row, counting tokens that a cache already holds
    lengths: tuple[int, ...]  # B numbers, each at least 1, that add up to T
    types: Tensor | None = None  # (T,) int64, which segment of its row a token is in; None: all in the first

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        types: Sequence[Sequence[int]] | None = None,
    ) -> Rows:
        """Lay rows end to end; `starts[b]` tokens of row b are already in a cache."""
        lengths = tuple(len(row) for row in rows)
        assert min(lengths, default=0) > 0, "there is a row, and each row has a token"
        first = starts if starts is not None else [0] * len(rows)
        ids = torch.tensor([token for row in rows for token in row], dtype=torch.long)
        positions = torch.cat([torch.arange(start, start + n) for start, n in zip(first, lengths, strict=True)])
        segments = None if types is None else torch.tensor([kind for row in types for kind in row], dtype=torch.long)
        return cls(ids, positions, lengths, segments)

    @classmethod
    def from_padded(cls, ids: Tensor, mask: Tensor) -> Rows:
        """From a padded rectangle (B, S) and its attention mask, padded on either side."""
        return cls.of([row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)])

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def with_prefix_positions(self, count: int) -> Rows:
        """With `count` places more before each row, which are no tokens: id 0, in the first segment."""
        none = self.ids.new_zeros(count)
        ids = prepend_to_each_row(none, self.ids, self.lengths)
        positions = prepend_to_each_row(torch.arange(count), self.positions + count, self.lengths)
        types = None if self.types is None else prepend_to_each_row(none, self.types, self.lengths)
        return Rows(ids, positions, tuple(n + count for n in self.lengths), types)

    @cached_property
    def grid(self) -> Tensor:
        """(B, S) int64: the index in T of each cell of the rectangle; cells past a row's end repeat its last token."""
        with persistent():
            lengths = torch.tensor(self.lengths)
            ends = lengths.cumsum(0)
            column = torch.arange(self.longest)
            return (ends - lengths)[:, None] + torch.minimum(column[None], lengths[:, None] - 1)

    @cached_property
    def cells(self) -> Tensor:
        """(T,) int64: the index of each token in the flattened rectangle (B * S)."""
        with persistent():
            lengths = torch.tensor(self.lengths)
            starts = torch.arange(len(self.lengths)) * self.longest
            within = torch.cat([torch.arange(n) for n in self.lengths])
            return torch.repeat_interleave(starts, lengths) + within

    def of_heads(self, heads: int) -> tuple[Tensor, Tensor]:
        """`grid` and `cells` where each token is `heads` vectors: int64 (B * H * S,) into (T, H), (T * H,) into
        (B, H, S)."""
        if heads not in self._of_heads:
            with persistent():
                head, S = torch.arange(heads), self.longest
                grid = self.grid[:, None] * heads + head[:, None]  # (B, H, S)
                cells = (self.cells // S * heads * S + self.cells % S)[:, None] + head * S  # (T, H)
                self._of_heads[heads] = grid.view(-1), cells.view(-1)
        return self._of_heads[heads]

    @cached_property
    def _of_heads(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {}

    @cached_property
    def last(self) -> Tensor:
        """(B,) int64: the index in T of each row's last token."""
        with persistent():
            return torch.tensor(self.lengths).cumsum(0) - 1


@dataclass(frozen=True)
class Pairs:
    """What an encoder-decoder takes: B rows that are read, and B rows that are written, pair by pair.

    Many short pairs lie in one batch without padding, and no pair sees another: this is what packing is for.
    """

    source: Rows
    target: Rows  # begins with the start token of the decoder


def prepend_to_each_row(first: Tensor, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """`first` (P, ...) before each of the rows in x (T, ...): (T + B P, ...)."""
    return torch.cat([part for row in torch.split(x, list(lengths)) for part in (first, row)])


def to_heads(x: Tensor, rows: Rows) -> Tensor:
    """(T, H, Dh) -> (B, H, S, Dh). Cells past a row's end hold a copy of its last token and get no gradient."""
    H, Dh = x.shape[1:]
    shape = (len(rows.lengths), H, rows.longest, Dh)
    if _even(rows):
        return x.view(shape[0], shape[2], H, Dh).transpose(1, 2)
    return apply(_Gather, x.reshape(-1, Dh), *rows.of_heads(H)).view(shape)


def from_heads(x: Tensor, rows: Rows) -> Tensor:
    """(B, H, S, Dh) -> (T, H, Dh), the inverse of `to_heads`."""
    H, Dh = x.shape[1], x.shape[3]
    if _even(rows):
        return x.transpose(1, 2).reshape(-1, H, Dh)
    _, cells = rows.of_heads(H)
    return apply(_Scatter, x.reshape(-1, Dh), cells).view(-1, H, Dh)


def from_grid(x: Tensor, rows: Rows) -> Tensor:
    """(B, S, ...) -> (T, ...), the tokens of a padded rectangle."""
    flat = x.reshape(-1, *x.shape[2:])
    return flat if _even(rows) else apply(_Scatter, flat, rows.cells)


def _even(rows: Rows) -> bool:
    return len(set(rows.lengths)) == 1


class _Gather(torch.autograd.Function):
    """Rows to rectangle. Backward reads the real cells back, instead of index_add's serial sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        return x.index_select(0, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cells,) = ctx.saved_tensors
        return grad.index_select(0, cells), None, None


class _Scatter(torch.autograd.Function):
    """Rectangle to rows. Backward writes zeros into the cells past a row's end."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.size = x.shape
        return x.index_select(0, cells)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (cells,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size).index_copy_(0, cells, grad), None
