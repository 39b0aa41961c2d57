"""Key-value caches: keys and values of the tokens so far, so that each step of generation computes new tokens only.

Shapes: B rows, KV heads of keys and values, C capacity, L longest row so far, Dh width of a head, T new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from microplane.device import put
from microplane.nn.rows import Rows, to_heads


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
        self.keys: list[Tensor | None] = [None] * layers  # (B, KV, C, Dh) once written
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
        return keys, values

    def _longest(self, rows: Rows) -> int:
        return max(start + new for start, new in zip(self.lengths, rows.lengths, strict=True))

    def starts(self) -> Tensor:
        """`lengths` as (B,) int64."""
        if self._starts is None or self._starts[0] is not self.lengths:
            self._starts = self.lengths, torch.tensor(self.lengths, dtype=torch.long)
        return self._starts[1]

    _starts: tuple[list[int], Tensor] | None = None

    def advance(self, rows: Rows) -> None:
        """Add the new tokens to `lengths`, once every layer has appended them."""
        self.lengths = [start + new for start, new in zip(self.lengths, rows.lengths, strict=True)]

    def select(self, indices: Sequence[int]) -> None:
        """Keep the rows `indices`, in that order. An index may occur several times: its row is copied."""
        if list(indices) == list(range(len(self.lengths))):
            return
        self.lengths = [self.lengths[index] for index in indices]
        chosen = torch.tensor(list(indices), dtype=torch.long)
        for tensors in (self.keys, self.values):
            tensors[:] = [None if x is None else x.index_select(0, put(chosen, x.device)) for x in tensors]

    def _grow(self, buffer: Tensor | None, new: Tensor, longest: int) -> Tensor:
        """The buffer, doubled until `longest` tokens fit; filled with zeros, as masked cells must not be NaN."""
        if buffer is not None and buffer.shape[2] >= longest:
            return buffer
        while self.capacity < longest:
            self.capacity = max(2 * self.capacity, 64)
        grown = new.new_zeros(len(self.lengths), new.shape[1], self.capacity, new.shape[2])
        if buffer is not None:
            grown[:, :, : buffer.shape[2]] = buffer
        return grown


class PairCache(Cache):
    """A decoder's cache, and for each layer the keys and values of the encoder's output."""

    def __init__(self, layers: int, source_lengths: tuple[int, ...], capacity: int = 0):
        super().__init__(layers, len(source_lengths), capacity)
        self.source_lengths = source_lengths
        self.memory: list[tuple[Tensor, Tensor]] = []  # per layer: keys, values (B, KV, L, Dh)

    def select(self, indices: Sequence[int]) -> None:
        if list(indices) == list(range(len(self.lengths))):
            return
        super().select(indices)
        self.source_lengths = tuple(self.source_lengths[index] for index in indices)
        chosen, longest = torch.tensor(list(indices), dtype=torch.long), max(self.source_lengths, default=0)
        self.memory = [
            (
                k[:, :, :longest].index_select(0, put(chosen, k.device)),  # narrowed first, so that it is dense
                v[:, :, :longest].index_select(0, put(chosen, v.device)),
            )
            for k, v in self.memory
        ]


def in_rectangles(pair: tuple[Tensor, Tensor], lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Keys and values of rows of these lengths, end to end (T, KV, Dh), as a cache holds them: (B, KV, L, Dh) each."""
    rows = Rows.of_lengths(lengths, pair[0].device)
    keys, values = (to_heads(x, rows).contiguous() for x in pair)
    return keys, values
