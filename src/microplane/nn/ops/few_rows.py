"""y = x W^T + bias for a few rows x, as generation multiplies: bound by reading W once, so W stays as it is stored.

torch reads a bfloat16 weight for one row at a seventh of the memory's speed, and a weight in 8 or 4 bits would be
expanded for it first. Only inside `torch.inference_mode`: training and validation multiply as they always did.
Sums are in float32, rounded once; a row's result does not depend on the other rows.
Shapes: x (T, in), W (out, in), bias (out,), y (T, out).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.nn.ops import native
from microplane.nn.ops.int8 import Int8
from microplane.nn.ops.nf4 import BLOCK, levels

MOST = 8  # rows: of more, torch's own products are as fast
MOST_QUANTISED = 8  # rows: of more, a weight is expanded as fast as it is multiplied so


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, which is the reference."""
    if not _few(x, MOST) or not x.dtype == weight.dtype == torch.bfloat16 or not native.usable(x, weight):
        return F.linear(x, weight, bias)
    y = x.new_empty(len(x), len(weight))
    native.run("few_rows", weight, x, _like(bias, x), y, *x.shape, len(weight), dtype=x.dtype)
    return y


def int8_linear(x: Tensor, weight: Int8, bias: Tensor | None) -> Tensor | None:
    """x (codes scale)^T + bias, x as it is; None where that is not done so."""
    if not _few(x, MOST_QUANTISED) or not native.fusable(x, weight.codes):
        return None
    y = x.new_empty(len(x), len(weight.codes))
    native.run("few_rows_int8", weight.codes, weight.scale, x, _like(bias, x), y, *x.shape, y.shape[1], dtype=x.dtype)
    return y


def nf4_linear(x: Tensor, codes: Tensor, absmax: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
    """The same with a weight in NF4, each of whose rows is a whole number of blocks.

    Args:
        x: rows that `fits_nf4` says yes to.
        codes, absmax: as `nf4.NF4` has the codes, and `nf4.dequantise_absmax` the rest.
    """
    y = x.new_empty(len(x), outputs)
    native.run("few_rows_nf4", codes, absmax, levels(), x, _like(bias, x), y, *x.shape, outputs, dtype=x.dtype)
    return y


def fits_nf4(x: Tensor) -> bool:
    """Whether `nf4_linear` can multiply these rows."""
    return _few(x, MOST_QUANTISED) and x.shape[1] % BLOCK == 0 and native.fusable(x)


def _few(x: Tensor, most: int) -> bool:
    return torch.is_inference_mode_enabled() and x.dim() == 2 and 0 < len(x) <= most


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)
