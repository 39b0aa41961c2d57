"""NF4 with double quantisation (QLoRA, arXiv 2305.14314), to the bit as bitsandbytes has it.

A weight is flattened row by row and cut into blocks of 64. A block is stored as its largest magnitude (absmax) and, for
each weight, the nearest of 16 levels times it: two codes a byte, the first in the high half. The absmax are stored in 8
bits themselves: their mean (offset) is taken off, the rest is cut into blocks of 256, each with a float32 scale.
That makes 4 + 8/64 + 32/(64 * 256) = 4.127 bits a weight. A file may also hold the absmax as they are, in float32: so
they are kept then, with 4.5 bits a weight.

Shapes: n weights, P = ceil(n / 2) bytes, N = ceil(n / 64) blocks, M = ceil(N / 256) blocks of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from microplane.device import CPU, put
from microplane.nn.ops import native
from microplane.nn.ops.int8 import LEAST as LEAST_ROW
from microplane.nn.ops.int8 import MOST, Int8
from microplane.nn.ops.scratch import persistent, scratch_buffer

BLOCK, NESTED = 64, 256
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
CHUNK = 1 << 19  # weights handled at once: their float32 copies stay in the processor's cache
LEAST = 1e-38  # bitsandbytes' stand-in for an absmax of zero


class NF4(NamedTuple):
    """A quantised weight."""

    codes: Tensor  # (P,) uint8, two codes a byte
    absmax: Tensor  # (N,) uint8, codes into `dynamic_map`; or float32, the absmax themselves
    nested_absmax: Tensor  # (M,) float32; (0,) where there are no codes of absmax
    offset: Tensor  # () float32


@cache
def levels(device: torch.device = CPU) -> Tensor:
    """(16,) float32: the number that each 4-bit code stands for, before it is multiplied by its block's absmax."""
    with persistent():
        return put(torch.tensor(LEVELS, device=CPU), device)


@cache
def dynamic_map(device: torch.device = CPU) -> Tensor:
    """(256,) float32, sorted: the signed 8-bit numbers of arXiv 1511.04561, whose exponent takes 0 to 7 of the bits."""
    with persistent():
        positive: list[float] = []
        for exponent in range(7):
            edges = torch.linspace(0.1, 1, 2**exponent + 1, device=CPU)
            positive += (10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2).tolist()
        return put(torch.tensor(sorted([-value for value in positive] + [0.0, *positive, 1.0]), device=CPU), device)


def empty_nf4(numel: int, device: torch.device | None = None) -> NF4:
    """The tensors of a weight with `numel` numbers, not initialised."""
    blocks = -(-numel // BLOCK)
    codes = torch.empty(-(-numel // 2), dtype=torch.uint8, device=device)
    absmax = torch.empty(blocks, dtype=torch.uint8, device=device)
    nested = torch.empty(-(-blocks // NESTED), device=device)
    return NF4(codes, absmax, nested, torch.empty((), device=device))


def of_scales(codes: Tensor, scales: Tensor) -> NF4:
    """A weight without double quantisation; `scales` (N,) float32."""
    return NF4(codes, scales, scales.new_empty(0), scales.new_zeros(()))


def quantise(weight: Tensor) -> NF4:
    """A weight of any shape and floating format."""
    if weight.is_meta:
        return empty_nf4(weight.numel(), weight.device)
    if weight.device.type != "cpu":  # to the same bytes as there
        return NF4(*(put(part, weight.device) for part in quantise(weight.cpu())))
    flat = weight.detach().reshape(-1)
    whole = len(flat) // BLOCK * BLOCK
    absmax = torch.empty(-(-len(flat) // BLOCK))
    codes = torch.empty(-(-len(flat) // 2), dtype=torch.uint8)
    for start in range(0, whole, CHUNK):
        blocks = flat[start : min(start + CHUNK, whole)].float().view(-1, BLOCK)
        largest = absmax[start // BLOCK :][: len(blocks)]
        largest.copy_(blocks.abs().amax(1))
        scaled = blocks * (1.0 / largest.clamp(min=LEAST)).unsqueeze(1)
        codes[start // 2 :][: scaled.numel() // 2] = _pack(scaled.view(-1))
    if whole < len(flat):  # the last block is not full; bitsandbytes divides there, where above it multiplies
        rest = flat[whole:].float()
        absmax[-1] = rest.abs().max().clamp(min=LEAST)
        codes[whole // 2 :] = _pack(rest / absmax[-1])
    offset = absmax.mean()
    return NF4(codes, *_quantise_absmax(absmax - offset), offset)


def _pack(scaled: Tensor) -> Tensor:
    """Numbers in -1 .. 1 as codes of the nearest level, the lower one in doubt: (n,) -> (ceil(n / 2),) uint8."""
    if len(scaled) % 2:
        scaled = torch.cat([scaled, scaled.new_zeros(1)])
    codes = nearest_level(scaled.clamp_(-1, 1))
    return codes[::2] << 4 | codes[1::2]


def nearest_level_reference(scaled: Tensor) -> Tensor:
    return torch.bucketize(scaled, (levels()[:-1] + levels()[1:]) / 2).to(torch.uint8)


def nearest_level(scaled: Tensor) -> Tensor:
    """uint8, as the reference: how many midpoints lie below. Fifteen plain comparisons are faster than a search."""
    codes, above = torch.zeros_like(scaled, dtype=torch.uint8), torch.empty_like(scaled, dtype=torch.bool)
    for edge in ((levels()[:-1] + levels()[1:]) / 2).tolist():
        codes += torch.gt(scaled, edge, out=above)
    return codes


BINS = 1 << 16


@cache
def _code_of_bin() -> Tensor:
    """(65536,) uint8: the nearest code of `dynamic_map` for each of so many evenly spaced numbers in -1 .. 1."""
    with persistent():
        edges = 0.5 * (dynamic_map()[:-1] + dynamic_map()[1:])
        numbers = -1.0 + (2.0 * torch.arange(BINS, dtype=torch.float32, device=CPU)) / (BINS - 1)
        return torch.bucketize(numbers, edges).to(torch.uint8)


def _quantise_absmax(centred: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) float32 -> (N,) uint8 and (M,) float32. Like bitsandbytes on a CPU, it looks the code up in 65,536 bins."""
    padded = torch.nn.functional.pad(centred, (0, -len(centred) % NESTED)).view(-1, NESTED)
    scale = padded.abs().amax(1)
    scaled = (padded * (1.0 / scale).unsqueeze(1)).clamp(-1, 1)
    bins = ((scaled + 1.0) * 0.5).double() * (BINS - 1) + 0.5  # in float64, rounded once, as a fused multiply-add does
    codes = _code_of_bin()[bins.float().nan_to_num(0.0).long()]
    codes[scale == 0] = 0
    return codes.view(-1)[: len(centred)].clone(), scale


def dequantise_absmax(weight: NF4) -> Tensor:
    """(N,) float32."""
    if weight.absmax.is_floating_point():
        return weight.absmax
    absmax = dynamic_map(weight.codes.device).index_select(0, weight.absmax.int())
    padded = torch.nn.functional.pad(absmax, (0, -len(absmax) % NESTED)).view(-1, NESTED)
    return padded.mul_(weight.nested_absmax.unsqueeze(1)).view(-1)[: len(absmax)].add_(weight.offset)


def dequantise_reference(weight: NF4, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """level * absmax in float32, rounded to `dtype`."""
    codes = torch.stack([weight.codes >> 4, weight.codes & 15], 1).view(-1)[: torch.Size(shape).numel()]
    scales = dequantise_absmax(weight).repeat_interleave(BLOCK)[: len(codes)]
    return (levels(codes.device)[codes.long()] * scales).to(dtype).view(*shape)


@cache
def _level_pairs(device: torch.device = CPU) -> Tensor:
    """(256,) int64: for each byte of codes its two levels, the bits of two float32 side by side."""
    with persistent():
        byte = torch.arange(256, device=device)
        return torch.stack([levels(device)[byte >> 4], levels(device)[byte & 15]], 1).view(torch.int64).view(-1)


def dequantise(
    weight: NF4, shape: Sequence[int], dtype: torch.dtype = torch.float32, out: Tensor | None = None
) -> Tensor:
    """As the reference.

    Args:
        out: of `shape` and `dtype` and contiguous; filled and returned. New memory costs more than the arithmetic.
    """
    if weight.codes.is_meta:
        return torch.empty(*shape, dtype=dtype, device="meta")
    return expand(weight.codes, dequantise_absmax(weight), shape, dtype, out)


def expand(
    codes: Tensor,
    scales: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """level * scale for each code, chunk by chunk, by a table of the two levels of each byte. `scales` (N,) float32."""
    n = torch.Size(shape).numel()
    out = torch.empty(*shape, dtype=dtype, device=codes.device) if out is None else out
    if dtype == torch.bfloat16 and n % BLOCK == 0 and native.usable(codes, scales, out):
        native.run("nf4_to_bf16", codes, scales, levels(), out, n // BLOCK)
        return out
    flat, table = out.view(-1), _level_pairs(codes.device)
    whole = n // BLOCK * BLOCK
    index = scratch_buffer("nf4 bytes", (CHUNK // 2,), torch.int32, codes.device)
    found = scratch_buffer("nf4 pairs", (CHUNK // 2,), torch.int64, codes.device)
    for start in range(0, whole, CHUNK):
        size = min(CHUNK, whole - start)
        bytes_, pairs = index[: size // 2], found[: size // 2]
        bytes_.copy_(codes[start // 2 : (start + size) // 2])
        torch.index_select(table, 0, bytes_, out=pairs)
        values = pairs.view(torch.float32).view(-1, BLOCK)
        values.mul_(scales[start // BLOCK : (start + size) // BLOCK].unsqueeze(1))
        flat[start : start + size].view(-1, BLOCK).copy_(values)
    if whole < n:
        rest = codes[whole // 2 :]
        last = torch.stack([rest >> 4, rest & 15], 1).view(-1)[: n - whole]
        flat[whole:] = (levels(codes.device)[last.long()] * scales[-1]).to(dtype)
    return out


def to_int8_reference(weight: NF4, shape: tuple[int, int]) -> Int8:
    """The weight in 8 bits, where each row is a whole number of blocks; a row's scale is its largest absmax / 127."""
    absmax = dequantise_absmax(weight).view(shape[0], -1)
    most = absmax.abs().amax(1, keepdim=True)
    table = (
        levels(absmax.device) * (absmax * (MOST / most.clamp(min=LEAST_ROW))).unsqueeze(-1)
    ).round_()  # (out, blocks, 16)
    codes = torch.stack([weight.codes >> 4, weight.codes & 15], 1).view(*absmax.shape, BLOCK).long()
    return Int8(table.gather(2, codes).view(shape).to(torch.int8), most / MOST)


def to_int8(weight: NF4, shape: tuple[int, int], out: Tensor | None = None) -> Int8:
    """As the reference. It adds an error of 0.8% of the weights to the 9% that NF4 has.

    Args:
        out: int8 of `shape`, filled with the codes.
    """
    if not native.usable(weight.codes, out):
        return to_int8_reference(weight, shape)
    codes, scale = torch.empty(shape, dtype=torch.int8) if out is None else out, torch.empty(shape[0], 1)
    native.run("nf4_to_int8", weight.codes, dequantise_absmax(weight), levels(), codes, scale, *shape)
    return Int8(codes, scale)
