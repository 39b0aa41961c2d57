"""What attention remembers of the tokens it has seen, so that generation computes only new ones.

Shapes: B rows, KV heads of keys and values, C capacity, L longest row so far, Dh width of a head, T new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from microplane.nn.rows import Rows


class Cache:
    """Keys and values of every layer. Row b's tokens stand at 0 .. lengths[b] - 1; what lies behind is zeros or stale.

    For use without gradients: cells are written in place.
    """

    def __init__(self, layers: int, batch: int, capacity: int = 0):
        self.lengths: list[int] = [0] * batch
        self.capacity = capacity
        self.keys: list[Tensor | None] = [None] * layers  # (B, KV, C, Dh) once written
        self.values: list[Tensor | None] = [None] * layers

    def append(self, layer: int, k: Tensor, v: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Write new tokens (T, KV, Dh) of one layer behind those of their rows.

        Returns everything that layer holds now, two views of (B, KV, L, Dh). `lengths` moves only with `advance`,
        once all layers have written.
        """
        longest = max(start + new for start, new in zip(self.lengths, rows.lengths, strict=True))
        batch = torch.repeat_interleave(torch.arange(len(rows.lengths)), torch.tensor(rows.lengths)).to(k.device)
        keys = self.keys[layer] = self._room(self.keys[layer], k, longest)
        values = self.values[layer] = self._room(self.values[layer], v, longest)
        keys[batch, :, rows.positions] = k
        values[batch, :, rows.positions] = v
        return keys[:, :, :longest], values[:, :, :longest]

    def advance(self, rows: Rows) -> None:
        """Count the tokens that every layer has appended."""
        self.lengths = [start + new for start, new in zip(self.lengths, rows.lengths, strict=True)]

    def select(self, indices: Sequence[int]) -> None:
        """Keep the rows `indices`, in that order; a row named twice is doubled."""
        if list(indices) == list(range(len(self.lengths))):
            return
        self.lengths = [self.lengths[index] for index in indices]
        chosen = torch.tensor(list(indices), dtype=torch.long)
        for held in (self.keys, self.values):
            held[:] = [None if x is None else x.index_select(0, chosen.to(x.device)) for x in held]

    def _room(self, held: Tensor | None, new: Tensor, longest: int) -> Tensor:
        """The buffer, doubled until `longest` tokens fit. Zeros, for masked cells must not hold a NaN."""
        if held is not None and held.shape[2] >= longest:
            return held
        while self.capacity < longest:
            self.capacity = max(2 * self.capacity, 64)
        grown = new.new_zeros(len(self.lengths), new.shape[1], self.capacity, new.shape[2])
        if held is not None:
            grown[:, :, : held.shape[2]] = held
        return grown


class PairCache(Cache):
    """A decoder's cache, and beside it the keys and values of the rows that its encoder has read."""

    def __init__(self, layers: int, source_lengths: tuple[int, ...], capacity: int = 0):
        super().__init__(layers, len(source_lengths), capacity)
        self.source_lengths = source_lengths
        self.memory: list[tuple[Tensor, Tensor]] = []  # of each layer: keys and values (B, KV, L, Dh), never appended

    def select(self, indices: Sequence[int]) -> None:
        if list(indices) == list(range(len(self.lengths))):
            return
        super().select(indices)
        self.source_lengths = tuple(self.source_lengths[index] for index in indices)
        chosen, longest = torch.tensor(list(indices), dtype=torch.long), max(self.source_lengths, default=0)
        self.memory = [
            (
                k[:, :, :longest].index_select(0, chosen.to(k.device)),  # narrowed first, so that it is dense
                v[:, :, :longest].index_select(0, chosen.to(v.device)),
            )
            for k, v in self.memory
        ]
