"""Linear layers whose frozen weight stays in the blocks of a GGUF file: Q4_0, Q4_1 and Q8_0.

A block is 32 weights of a row: codes c of 4 bits and w = scale c + least (Q4_0: least = -8 scale), or codes of 8 bits
with a sign and w = scale c. Scales are float16. Weights of another kind are rounded to Q8_0.
Shapes: weight (out, in), codes (out, in / 2) uint8 of 4 bits, the first half of a block in the low halves of its bytes,
or (out, in) int8; scale and least (out, in / 32), least (0,) of 8 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from microplane.errors import ModelError
from microplane.nn.ops import few_rows, int8
from microplane.nn.quantised import QuantisedLinear

BLOCK = 32
MOST = 127  # the largest code of 8 bits
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}  # of a block in the file: scale, of Q4_1 least, codes


class Blocks(NamedTuple):
    """A weight in blocks."""

    codes: Tensor
    scale: Tensor
    least: Tensor


def unpack(raw: Tensor, kind: str) -> Blocks:
    """The rows of a tensor of a GGUF file, (out, bytes) uint8, as `Blocks`: the same bits, sorted."""
    blocks = raw.view(len(raw), -1, BYTES[kind])
    halves = blocks[..., : 4 if kind == "Q4_1" else 2].contiguous().view(torch.float16)
    codes, scale = blocks[..., 2 * halves.shape[-1] :].flatten(1), halves[..., 0].contiguous()
    if kind == "Q8_0":
        return Blocks(codes.contiguous().view(torch.int8), scale, scale.new_empty(0))
    least = halves[..., 1].contiguous() if kind == "Q4_1" else -8 * scale
    return Blocks(codes.contiguous(), scale, least)


def quantise(weight: Tensor) -> Blocks:
    """A weight (out, in) as Q8_0.

    Raises:
        ModelError: if a row is no whole number of blocks.
    """
    outputs, width = weight.shape
    if width % BLOCK:
        raise ModelError(f"rows of {width} weights are no whole number of GGUF's blocks of {BLOCK}: take another dtype")
    blocks = weight.detach().float().view(outputs, -1, BLOCK)
    scale = (blocks.abs().amax(-1) / MOST).half()
    codes = (blocks / scale.float().clamp(min=1e-7)[..., None]).round().clamp(-MOST, MOST)
    return Blocks(codes.to(torch.int8).view(outputs, width), scale, scale.new_empty(0))


def dequantise(parts: Blocks) -> Tensor:
    """The weight (out, in) in float32."""
    scale = parts.scale.float()[..., None]
    if parts.codes.dtype == torch.int8:
        return (parts.codes.view(*parts.scale.shape, BLOCK) * scale).flatten(1)
    both = parts.codes.view(*parts.scale.shape, BLOCK // 2)
    return (torch.cat([both & 15, both >> 4], -1) * scale + parts.least.float()[..., None]).flatten(1)


class GGUFLinear(QuantisedLinear):
    kind = "gguf"
    parts_type = Blocks
    codes: Tensor
    scale: Tensor
    least: Tensor

    @classmethod
    def parts_of(cls, weight: Tensor) -> Blocks:
        return quantise(weight)

    @classmethod
    def of_parts(cls, parts: Blocks | None) -> GGUFLinear | None:
        """A layer of what a file stores; None of nothing."""
        if parts is None:
            return None
        outputs, blocks = parts.scale.shape
        linear = cls(BLOCK * blocks, outputs, torch.float32)
        linear.set_parts(parts)
        return linear

    @property
    def parts(self) -> Blocks:
        return Blocks(self.codes, self.scale, self.least)

    def stored(self) -> few_rows.Stored:
        shape = self.out_features, self.in_features
        if self.codes.dtype == torch.int8:
            return few_rows.Stored(few_rows.GGUF8, self.codes, *shape, self.scale)
        return few_rows.Stored(few_rows.GGUF4, self.codes, *shape, self.scale, self.least)

    def dequantise(self, out: Tensor | None = None) -> Tensor:
        weight = dequantise(self.parts)
        return weight.to(self.dtype) if out is None else out.copy_(weight)

    def in_int8(self, out: Tensor | None = None) -> int8.Int8:
        return int8.quantise(dequantise(self.parts))
