"""Key-value caches: keys and values of the tokens so far, so that each step of generation computes new tokens only.

Shapes: B rows, KV heads of keys and values, C capacity, L longest row so far, Dh width of a head, T new tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.device import put
from microplane.nn.rows import Rows, to_heads

LEAST_CAPACITY = 64  # tokens of a row


class Rooms(NamedTuple):
    """Keys and values of all layers in turn, (B, KV, C, Dh) each."""

    number: int  # another one wherever the tensors, or their rows, are others
    tensors: list[Tensor]
    capacity: int  # least C


class Cache:
    """Keys and values of every layer. Row b's tokens are at 0 .. lengths[b] - 1; later cells hold zeros or old data.

    Only for use without gradients, as cells are written in place.

    Args:
        layers: number of layers.
        batch: B.
        capacity: tokens to make room for at once; it grows when needed.
    """

    def __init__(self, layers: int, batch: int, capacity: int = 0):
        self.lengths: list[int] = [0] * batch
        self.capacity = capacity
        self.keys: list[Tensor | None] = [None] * layers  # (B or more, KV, C, Dh) once written
        self.values: list[Tensor | None] = [None] * layers

    def append(self, layer: int, k: Tensor, v: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens (T, KV, Dh) of one layer to their rows.

        Returns all keys and values of that layer, two views (B, KV, L, Dh). `lengths` stays until `advance` is called,
        after all layers have appended.
        """
        batch = rows.row_of_token
        keys, values = self.room(layer, k, v, rows)
        longest = self._longest(rows)
        keys[batch, :, rows.positions] = k
        values[batch, :, rows.positions] = v
        return keys[:, :, :longest], values[:, :, :longest]

    def room(self, layer: int, k: Tensor, v: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The whole buffers of one layer, (B, KV, C, Dh) each, with room for new tokens behind `lengths`."""
        longest = self._longest(rows)
        keys = self.keys[layer] = self._grow(self.keys[layer], k, longest)
        values = self.values[layer] = self._grow(self.values[layer], v, longest)
        return keys[: len(self.lengths)], values[: len(self.lengths)]

    def rooms(self, like: Tensor, rows: Rows) -> Rooms:
        """What `room` gives of all layers; the same until some of it is another.

        Args:
            like: (any, KV, Dh), in the format of keys and values.
        """
        known, count = self._rooms, len(self.lengths)
        if known is None or len(known.tensors[0]) != count or self._longest(rows) > known.capacity:
            self._rooms = None  # so that nothing holds a buffer that is replaced
            found = [x for layer in range(len(self.keys)) for x in self.room(layer, like, like, rows)]
            self._numbers += 1
            self._rooms = known = Rooms(self._numbers, found, min(x.shape[2] for x in found))
        return known

    def _longest(self, rows: Rows) -> int:
        return max(start + new for start, new in zip(self.lengths, rows.lengths, strict=True))

    def starts(self) -> Tensor:
        """`lengths` as (B,) int64."""
        if self._starts is None or self._starts[0] is not self.lengths:
            self._starts = self.lengths, torch.tensor(self.lengths, dtype=torch.long)
        return self._starts[1]

    _starts: tuple[list[int], Tensor] | None = None
    _rooms: Rooms | None = None
    _numbers: int = 0
    step: Any = None  # models/fused_step.py: how one token of each row is computed at once; False: it cannot be
    rows_can_join: ClassVar[bool] = True  # whether `join` and `drop` are to be had

    def advance(self, rows: Rows) -> None:
        """Add the new tokens to `lengths`, once every layer has appended them."""
        self.lengths = [start + new for start, new in zip(self.lengths, rows.lengths, strict=True)]

    def select(self, indices: Sequence[int]) -> None:
        """Keep the rows `indices`, in that order. An index may occur several times: its row is copied."""
        if list(indices) == list(range(len(self.lengths))):
            return
        self._rooms = None
        self.lengths = [self.lengths[index] for index in indices]
        chosen = torch.tensor(list(indices), dtype=torch.long)
        for tensors in (self.keys, self.values):
            tensors[:] = [None if x is None else x.index_select(0, put(chosen, x.device)) for x in tensors]

    def join(self, other: Cache) -> None:
        """Append the rows of another cache, which are copied behind those that are here."""
        self._rooms = None
        held, longest = len(self.lengths), max(other.lengths)
        self.lengths = [*self.lengths, *other.lengths]
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, new in enumerate(theirs):
                if new is not None:
                    mine[layer] = buffer = self._grow(mine[layer], new[:, :, 0], longest)
                    buffer[held : len(self.lengths), :, :longest] = new[: len(other.lengths), :, :longest]

    def drop(self, gone: Collection[int]) -> list[int]:
        """Let the rows `gone` go: rows from the end are copied into their places. What is free is kept for others.

        Returns:
            For each row that is left, which it was.
        """
        order = list(range(len(self.lengths)))
        for index in sorted(gone, reverse=True):
            last = order.pop()
            if index < len(order):
                order[index] = last
        self.lengths = [self.lengths[index] for index in order]
        for place, index in enumerate(order):
            if place != index:
                for buffer in (*self.keys, *self.values):
                    if buffer is not None:
                        length = self.lengths[place]
                        buffer[place, :, :length] = buffer[index, :, :length]
        return order

    def _grow(self, buffer: Tensor | None, new: Tensor, longest: int) -> Tensor:
        """The buffer, doubled until `longest` tokens fit, and made larger by half for more rows; filled with zeros, as
        masked cells must not be NaN."""
        held = 0 if buffer is None else len(buffer)
        if buffer is not None and buffer.shape[2] >= longest and held >= len(self.lengths):
            return buffer
        while self.capacity < longest:
            self.capacity = max(2 * self.capacity, LEAST_CAPACITY)
        rows = held if held >= len(self.lengths) else max(len(self.lengths), held + held // 2)
        grown = new.new_zeros(rows, new.shape[1], self.capacity, new.shape[2])
        if buffer is not None:
            grown[:held, :, : buffer.shape[2]] = buffer
        return grown


class PairCache(Cache):
    """A decoder's cache, and for each layer the keys and values of the encoder's output."""

    def __init__(self, layers: int, source_lengths: tuple[int, ...], capacity: int = 0):
        super().__init__(layers, len(source_lengths), capacity)
        self.source_lengths = source_lengths
        self.memory: list[tuple[Tensor, Tensor]] = []  # per layer: keys, values (B, KV, L, Dh)

    def join(self, other: Cache) -> None:
        assert isinstance(other, PairCache), "pairs join pairs"
        super().join(other)
        self.source_lengths = (*self.source_lengths, *other.source_lengths)
        longest = max(self.source_lengths)
        self.memory = [
            (
                torch.cat([_widened(k, longest), _widened(more_k, longest)]),
                torch.cat([_widened(v, longest), _widened(more_v, longest)]),
            )
            for (k, v), (more_k, more_v) in zip(self.memory, other.memory, strict=True)
        ]

    def drop(self, gone: Collection[int]) -> list[int]:
        order = super().drop(gone)
        self._choose(order)
        return order

    def select(self, indices: Sequence[int]) -> None:
        if list(indices) == list(range(len(self.lengths))):
            return
        super().select(indices)
        self._choose(indices)

    def _choose(self, indices: Sequence[int]) -> None:
        self.source_lengths = tuple(self.source_lengths[index] for index in indices)
        chosen, longest = torch.tensor(list(indices), dtype=torch.long), max(self.source_lengths, default=0)
        self.memory = [
            (
                k[:, :, :longest].index_select(0, put(chosen, k.device)),  # narrowed first, so that it is dense
                v[:, :, :longest].index_select(0, put(chosen, v.device)),
            )
            for k, v in self.memory
        ]


def _widened(x: Tensor, longest: int) -> Tensor:
    """(B, KV, L, Dh) with zeros up to L = longest."""
    return F.pad(x, (0, 0, 0, longest - x.shape[2]))


def in_rectangles(pair: tuple[Tensor, Tensor], lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Keys and values of rows of these lengths, end to end (T, KV, Dh), as a cache holds them: (B, KV, L, Dh) each."""
    rows = Rows.of_lengths(lengths, pair[0].device)
    keys, values = (to_heads(x, rows).contiguous() for x in pair)
    return keys, values
