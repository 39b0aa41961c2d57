"""Rows of tokens laid end to end, without padding: the input of every model.

Shapes: T tokens in all, B rows, S the longest row.

There is no padding token anywhere in training or generation. Linears, norms and the head get (T, D). Only attention
needs a rectangle, one for each head, and gets it by a single gather (`to_heads`) whose backward is a gather too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from microplane.device import put
from microplane.nn.ops.autograd import apply
from microplane.nn.ops.scratch import persistent


@dataclass(frozen=True)
class Rows:
    """B rows of unequal length, laid end to end."""

    ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, position of each token in its row, counted with tokens that a cache already holds
    lengths: tuple[int, ...]  # B numbers, each at least 1, that add up to T
    types: Tensor | None = None  # (T,) int64, segment of each token (0, or 1 for a second text); None: all 0

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
        types: Sequence[Sequence[int]] | None = None,
    ) -> Rows:
        """From lists of token ids, one list per row.

        Args:
            starts: how many tokens of each row are in a cache already; they count as positions.
            types: the segment of each token.
        """
        lengths = tuple(len(row) for row in rows)
        assert min(lengths, default=0) > 0, "there is a row, and each row has a token"
        first = starts if starts is not None else [0] * len(rows)
        ids = torch.tensor([token for row in rows for token in row], dtype=torch.long)
        positions = torch.tensor([p for start, n in zip(first, lengths, strict=True) for p in range(start, start + n)])
        segments = None if types is None else torch.tensor([kind for row in types for kind in row], dtype=torch.long)
        return cls(ids, positions, lengths, segments)

    @classmethod
    def of_lengths(cls, lengths: tuple[int, ...], device: torch.device) -> Rows:
        """The places of rows alone, without tokens."""
        none = torch.empty(0, dtype=torch.long, device=device)
        return cls(none, none, lengths)

    @classmethod
    def from_padded(cls, ids: Tensor, mask: Tensor) -> Rows:
        """From a padded rectangle (B, S) and its attention mask, padded on either side."""
        return cls.of([row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)])

    def to(self, device: torch.device) -> Rows:
        """The rows on a device; these themselves if they are there."""
        if self.ids.device == device:
            return self
        types = None if self.types is None else put(self.types, device)
        there = Rows(put(self.ids, device), put(self.positions, device), self.lengths, types)
        there.__dict__["last_position"] = self.last_position  # which would have to be waited for there
        return there

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def with_prefix_positions(self, count: int) -> Rows:
        """The rows with `count` more positions at the start of each: no tokens, with id -1 and segment 0."""
        none = self.ids.new_zeros(count)
        ids = prepend_to_each_row(none - 1, self.ids, self.lengths)
        positions = prepend_to_each_row(torch.arange(count, device=none.device), self.positions + count, self.lengths)
        types = None if self.types is None else prepend_to_each_row(none, self.types, self.lengths)
        longer = Rows(ids, positions, tuple(n + count for n in self.lengths), types)
        longer.__dict__["last_position"] = self.last_position + count
        return longer

    @cached_property
    def last_position(self) -> int:
        """The largest of the positions."""
        return int(self.positions.max())

    def positions_without(self, token: int) -> Tensor:
        """(T,) int64: the positions where one token is not counted, whose own is -1. Of whole rows alone."""
        is_it = (self.ids == token).long()
        before = is_it.cumsum(0) - is_it
        skipped = before - before[self.last - self.sizes + 1][self.row_of_token]
        return torch.where(is_it.bool(), -1, self.positions - skipped)

    @cached_property
    def grid(self) -> Tensor:
        """(B, S) int64: for each cell of the rectangle its index in T. Cells past a row's end repeat its last token."""
        with persistent():
            lengths = torch.tensor(self.lengths)
            ends = lengths.cumsum(0)
            column = torch.arange(self.longest)
            return self._here((ends - lengths)[:, None] + torch.minimum(column[None], lengths[:, None] - 1))

    @cached_property
    def cells(self) -> Tensor:
        """(T,) int64: for each token its index in the flattened rectangle (B * S)."""
        with persistent():
            lengths = torch.tensor(self.lengths)
            starts = torch.arange(len(self.lengths)) * self.longest
            within = torch.cat([torch.arange(n) for n in self.lengths])
            return self._here(torch.repeat_interleave(starts, lengths) + within)

    def of_heads(self, heads: int) -> tuple[Tensor, Tensor]:
        """`grid` and `cells` for tensors of `heads` vectors per token: int64 (B * H * S,), indices into the flattened
        (T, H); and int64 (T * H,), indices into the flattened (B, H, S)."""
        if heads not in self._of_heads:
            with persistent():
                head, S = torch.arange(heads, device=self.ids.device), self.longest
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
            return self._here(torch.tensor(self.lengths).cumsum(0) - 1)

    @cached_property
    def sizes(self) -> Tensor:
        """(B,) int64: `lengths`."""
        with persistent():
            return self._here(torch.tensor(self.lengths))

    @cached_property
    def is_token(self) -> Tensor:
        """(B, S) bool: of the cells of the rectangle, those that hold a token; the rest lies past a row's end."""
        with persistent():
            return self._here(torch.arange(self.longest) < torch.tensor(self.lengths)[:, None])

    @cached_property
    def row_of_token(self) -> Tensor:
        """(T,) int64: the row of each token."""
        with persistent():
            return self._here(torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths)))

    def _here(self, index: Tensor) -> Tensor:
        """Indices are made on the CPU, which knows the lengths, and used where the tokens are."""
        return put(index, self.ids.device)


@dataclass(frozen=True)
class Pairs:
    """The input of an encoder-decoder: B source rows, and the B target rows that belong to them.

    Many short pairs share a batch without padding, and no pair attends to another.
    """

    source: Rows
    target: Rows  # each begins with the decoder's start token

    def to(self, device: torch.device) -> Pairs:
        """The pairs on a device."""
        return Pairs(self.source.to(device), self.target.to(device))


def prepend_to_each_row(first: Tensor, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Put `first` (P, ...) before each of the B rows of x (T, ...): (T + B P, ...)."""
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
    """(B, S, ...) -> (T, ...): the tokens of a padded rectangle, without its padding."""
    flat = x.reshape(-1, *x.shape[2:])
    return flat if _even(rows) else apply(_Scatter, flat, rows.cells)


def _even(rows: Rows) -> bool:
    return len(set(rows.lengths)) == 1


class _Gather(torch.autograd.Function):
    """Rows to rectangle. Backward gathers the cells of tokens, where index_add would sum one by one."""

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
