"""y = x W^T + bias for a few rows x, as generation multiplies: bound by reading W once, so W stays as it is stored.

torch reads a bfloat16 weight for one row at a seventh of the memory's speed, and a weight in 8 or 4 bits would be
expanded for it first. Only inside `torch.inference_mode`: training and validation multiply as they always did.
Sums are in float32, rounded once; a row's result does not depend on the other rows. Where the processor has products of
bytes, a row of bfloat16 that meets codes of up to 8 bits is taken as whole numbers of 15 bits of its largest.
Shapes: x (T, in), W (out, in), bias (out,), y (T, out).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.errors import notice
from microplane.nn.ops import native
from microplane.nn.ops.scratch import persistent

MOST = {torch.bfloat16: 64, torch.float32: 8}  # rows: of more, torch's own products are as fast
FLOAT32, BFLOAT16, INT8, NF4, GGUF4, GGUF8 = range(1, 7)  # as nn/ops/native/products.h has them
PLAIN = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


class Stored(NamedTuple):
    """A weight as it is stored: what `native` needs to multiply with it."""

    kind: int
    codes: Tensor
    outputs: int
    width: int
    scales: Tensor | None = None
    other: Tensor | None = None  # of NF4 its levels, of GGUF4 what a block begins at

    def matrix(self, bias: Tensor | None, A: Tensor | None = None, B: Tensor | None = None) -> list[int]:
        """The words of a `Matrix` of nn/ops/native/products.h.

        Args:
            bias, A, B: in the format of x; A (r, in) and B (r, out) of a low-rank update.
        """
        codes, scales, other, added, low, high = (
            0 if x is None else x.data_ptr() for x in (self.codes, self.scales, self.other, bias, A, B)
        )
        rank = 0 if A is None else len(A)
        return [self.kind, codes, scales, other, added, self.outputs, self.width, low, high, rank]

    @property
    def usable(self) -> bool:
        """Whether compiled operations can read it."""
        return native.usable(self.codes, self.scales, self.other)


def plain(weight: Tensor) -> Stored:
    """A weight (out, in) in float32 or bfloat16."""
    return Stored(PLAIN[weight.dtype], weight, *weight.shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, which is the reference."""
    if not few(x) or not x.dtype == weight.dtype == torch.bfloat16:
        return F.linear(x, weight, bias)
    y = stored_linear(x, plain(weight), bias)
    return F.linear(x, weight, bias) if y is None else y


def stored_linear(x: Tensor, weight: Stored, bias: Tensor | None) -> Tensor | None:
    """The same with a weight of any kind; None where that is not done so."""
    if not few(x) or not native.fusable(x) or not weight.usable or not agrees():
        return None
    return _product(x, weight, None if bias is None else bias.to(x.dtype))


def _product(x: Tensor, weight: Stored, bias: Tensor | None) -> Tensor:
    y = x.new_empty(len(x), weight.outputs)
    native.run("few_rows", torch.tensor(weight.matrix(bias)), x, y, len(x), dtype=x.dtype)
    return y


def few(x: Tensor) -> bool:
    """Whether these are rows of generation."""
    return torch.is_inference_mode_enabled() and x.dim() == 2 and 0 < len(x) <= MOST.get(x.dtype, 0)


@cache
def agrees() -> bool:
    """Whether the compiled products are what torch's are, tried once on a few numbers; if not, that is told."""
    with persistent():
        for dtype in PLAIN:
            W = torch.linspace(-1, 1, 35 * 66).sin().view(35, 66).to(dtype)
            for rows in (1, 3, 7):
                x = torch.linspace(1, 3, rows * 66).cos().view(rows, 66).to(dtype)
                exact = F.linear(x.double(), W.double())
                if not (_product(x, plain(W), None).double() - exact).abs().amax() < 0.01 * exact.abs().amax():
                    notice("native    products of a few rows are not what torch's are, and are left to torch: slower")
                    return False
    return True
