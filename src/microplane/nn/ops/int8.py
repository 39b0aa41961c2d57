"""Weights in 8 bits with one scale for each row: w = code * scale, scale = max |row| / 127; and products of 8 bits.

Symmetric, so that a zero stays a zero. 8 + 32/in bits a weight; off by at most half a scale.

Products: each row of the other factor gets 8 bits too, on its way in (vector-wise as in arXiv 2208.07339, but without
outliers in 16 bits), the sums are exact in int32, and both scales are multiplied in at the end. In the backward product
the weight's scale, which stands on the summed side there, is multiplied into the gradient first.
Shapes: weight (out, in), codes (out, in) int8, scale (out, 1) float32, x (T, in), y (T, out).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from microplane.nn.ops import native
from microplane.nn.ops.scratch import scratch_buffer

MOST = 127
LEAST = 1e-37  # stands for the largest of a row of zeros
CHUNK = 1 << 19  # weights handled at once: their float32 copies stay in the processor's cache


class Int8(NamedTuple):
    """A quantised weight."""

    codes: Tensor
    scale: Tensor


def quantise(weight: Tensor) -> Int8:
    """A weight (out, in) of any floating format."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), 1, device=weight.device)
    if weight.is_meta:  # amax there would import torch's compiler
        return Int8(codes, scale)
    step = _rows(weight)
    for start in range(0, len(weight), step):
        rows = weight.detach()[start : start + step].float()
        scale[start : start + step] = rows.abs().amax(1, keepdim=True) / MOST
        divisor = scale[start : start + step].clamp(min=torch.finfo(torch.float32).tiny)
        codes[start : start + step] = (rows / divisor).round_().clamp_(-MOST, MOST)
    return Int8(codes, scale)


def dequantise_reference(weight: Int8, dtype: torch.dtype = torch.float32) -> Tensor:
    """code * scale in float32, rounded to `dtype`."""
    return (weight.codes.float() * weight.scale).to(dtype)


def dequantise(weight: Int8, dtype: torch.dtype = torch.float32, out: Tensor | None = None) -> Tensor:
    """As the reference, chunk by chunk. `out` (out, in) of `dtype` is filled and returned."""
    out = torch.empty(weight.codes.shape, dtype=dtype, device=weight.codes.device) if out is None else out
    step = _rows(weight.codes)
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        out[rows] = weight.codes[rows].float().mul_(weight.scale[rows])
    return out


def quantise_rows_reference(x: Tensor, columns: Tensor | None = None) -> Int8:
    """x (T, n), times `columns` (n,) if given, in 8 bits with a scale for each row: codes (T, n), scale (T, 1)."""
    wide = x.float() if columns is None else x.float() * columns
    most = wide.abs().amax(1, keepdim=True)
    return Int8((wide * (MOST / most.clamp(min=LEAST))).round_().to(torch.int8), most / MOST)


def quantise_rows(x: Tensor, columns: Tensor | None = None) -> Int8:
    """As the reference. The codes are in a scratch buffer: valid until the next call."""
    if not native.fusable(x, columns):
        return quantise_rows_reference(x, columns)
    codes, scale = scratch_buffer("rows", x.shape, torch.int8, x.device), torch.empty(len(x), 1)
    native.run("quantise_rows", x, columns, codes, scale, *x.shape, dtype=x.dtype)
    return Int8(codes, scale)


def scale_sums_reference(
    sums: Tensor, rows: Tensor, columns: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """sums (T, n) int32 times `rows` (T, 1) and `columns` (n,), plus `bias` (n,), in float32, rounded to `dtype`."""
    y = sums.float() * (rows if columns is None else rows * columns)
    return (y if bias is None else y + bias.float()).to(dtype)


def scale_sums(sums: Tensor, rows: Tensor, columns: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As the reference, in one pass over memory."""
    if dtype not in native.SUFFIX or not native.usable(sums, rows, columns, bias):
        return scale_sums_reference(sums, rows, columns, bias, dtype)
    bias = None if bias is None else bias.to(dtype)
    y = torch.empty(sums.shape, dtype=dtype)
    native.run("scale_sums", sums, rows, columns, bias, y, *sums.shape, dtype=dtype)
    return y


def product_reference(x: Tensor, weight: Int8, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, (T, out), summed exactly."""
    rows = quantise_rows_reference(x)
    sums = (rows.codes.double() @ weight.codes.double().t()).to(torch.int32)
    return scale_sums_reference(sums, rows.scale, weight.scale.view(-1), bias, x.dtype)


def product(x: Tensor, weight: Int8, bias: Tensor | None = None) -> Tensor:
    """As the reference, at twice the speed of bfloat16 where the processor has products of 8 bits (VNNI)."""
    rows = quantise_rows(x.contiguous())
    return scale_sums(_sums(rows.codes, weight.codes.t()), rows.scale, weight.scale.view(-1), bias, x.dtype)


def product_back_reference(grad: Tensor, weight: Int8) -> Tensor:
    """The gradient of x, grad W: (T, out) -> (T, in)."""
    rows = quantise_rows_reference(grad, weight.scale.view(-1))
    sums = (rows.codes.double() @ weight.codes.double()).to(torch.int32)
    return scale_sums_reference(sums, rows.scale, None, None, grad.dtype)


def product_back(grad: Tensor, weight: Int8) -> Tensor:
    """As the reference."""
    rows = quantise_rows(grad.contiguous(), weight.scale.view(-1))
    return scale_sums(_sums(rows.codes, weight.codes), rows.scale, None, None, grad.dtype)


def _sums(x: Tensor, codes: Tensor) -> Tensor:
    """x codes, (T, n) int32, in a scratch buffer: valid until the next call."""
    if x.device.type != "cpu":
        fits = len(x) > 16 and x.shape[1] % 8 == 0 and codes.shape[1] % 8 == 0  # what CUDA's kernel asks for
        return torch._int_mm(x, codes) if fits else (x.double() @ codes.double()).to(torch.int32)
    out = scratch_buffer("sums", (len(x), codes.shape[1]), torch.int32, x.device)
    return torch._int_mm(x, codes, out=out)


def _rows(weight: Tensor) -> int:
    return max(1, CHUNK // max(1, weight.shape[1]))
