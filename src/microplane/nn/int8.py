"""Weights in 8 bits with one scale for each row: w = code * scale, scale = max |row| / 127.

Symmetric, so that a zero stays a zero. 8 + 32/in bits a weight; off by at most half a scale.
Shapes: weight (out, in), codes (out, in) int8, scale (out, 1) float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST = 127
CHUNK = 1 << 19  # weights handled at once: their float32 copies stay in the processor's cache


class Int8(NamedTuple):
    """A quantised weight."""

    codes: Tensor
    scale: Tensor


def quantise(weight: Tensor) -> Int8:
    """A weight (out, in) of any floating format."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), 1, device=weight.device)
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


def _rows(weight: Tensor) -> int:
    return max(1, CHUNK // max(1, weight.shape[1]))
