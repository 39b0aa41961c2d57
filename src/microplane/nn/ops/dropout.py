"""Dropout (JMLR 15, 2014, Srivastava et al.) whose mask costs little on a CPU.

torch draws the mask number by number on one core: 28% of a T5 training step. Here each element's number is a hash of
its place, 16 bits of a word, so a probability is a multiple of 1/65536 and the mask can be made again in the backward
pass instead of being kept. One number of torch's own generator seeds it: `torch.manual_seed` decides every mask, a
continued run draws the same ones, and so does activation checkpointing; whether the operations are compiled
(nn/ops/native) changes no mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microplane.device import CPU
from microplane.nn.ops import native
from microplane.nn.ops.autograd import apply

STEPS = 1 << 16  # of probability: one 16-bit number decides on one element

_BITS = {2: np.int16, 4: np.int32, 8: np.int64}  # the whole number as wide as a float of so many bytes


def keep_steps(p: float) -> int:
    """How many of the 65,536 numbers keep an element; at least one keeps it and one drops it."""
    return min(STEPS - 1, max(1, round((1 - p) * STEPS)))


def draw_seed() -> int:
    """The seed of one mask: the next number of torch's generator."""
    return int(torch.empty((), dtype=torch.int64, device=CPU).random_())


def dropout_mask(shape: torch.Size, p: float, seed: int, device: torch.device = CPU) -> Tensor:
    """Which elements are kept: bool of `shape`, each True with probability `keep_steps(p) / 65536`; on every device the
    same ones.

    Of n elements, word j < half = ceil(n / 2) decides on element j (its low bits) and element half + j (its high bits).
    """
    count = shape.numel()
    if device.type != "cpu":
        on_device = _words_on(device, seed, -(-count // 2))
        return (torch.cat([on_device & 0xFFFF, on_device >> 16])[:count] < keep_steps(p)).view(shape)
    words = _words(seed, -(-count // 2))
    numbers = np.concatenate([words & np.uint32(0xFFFF), words >> np.uint32(16)])[:count]
    return torch.from_numpy(numbers < keep_steps(p)).view(shape)


def _words(seed: int, count: int) -> np.ndarray:
    """uint32 (count,): a hash of each place, in two rounds that each take in half of the mixed seed."""
    seed = _mixed(seed)
    h = np.arange(count, dtype=np.uint32)
    h *= np.uint32(0x9E3779B9)
    h += np.uint32(seed & 0xFFFFFFFF)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x21F0AAAD)
    h ^= h >> np.uint32(15)
    h += np.uint32(seed >> 32)
    h *= np.uint32(0xD35A2D97)
    h ^= h >> np.uint32(15)
    return h


def _words_on(device: torch.device, seed: int, count: int) -> Tensor:
    """`_words` on another device, in int64, whose low 32 bits are those of a product in uint32."""
    seed, low = _mixed(seed), 0xFFFFFFFF
    h = torch.arange(count, device=device).mul_(0x9E3779B9).add_(seed & low).bitwise_and_(low)
    h ^= h >> 16
    h.mul_(0x21F0AAAD).bitwise_and_(low)
    h ^= h >> 15
    h.add_(seed >> 32).bitwise_and_(low)
    h.mul_(0xD35A2D97).bitwise_and_(low)
    h ^= h >> 15
    return h


def _mixed(seed: int) -> int:
    """SplitMix64's output function (Steele, Lea, Flood 2014), so that seeds with bits alike share nothing."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def dropout_reference(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Zero where the mask is False, and divided by the share that is kept elsewhere."""
    return torch.where(mask, x * (STEPS / keep_steps(p)), 0)


def dropout(x: Tensor, p: float, training: bool = True, added: Tensor | None = None) -> Tensor:
    """x (...) with a share `p` of its elements zeroed, the rest scaled up so that the expectation is x.

    As the reference with a new mask, of which the backward pass keeps the seed. `added` (...) is added to the result.
    Outside of training, and for p = 0, it is x itself. 0 <= p < 1.
    """
    if not training or p == 0:
        return x if added is None else added + x
    assert 0 < p < 1, f"dropout of {p}: must be at least 0 and below 1"
    return apply(_Dropout, x, added, p, draw_seed())


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, p: float, seed: int) -> Tensor:
        ctx.p, ctx.seed = p, seed
        return apply_dropout(x, p, seed, added)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = apply_dropout(grad, ctx.p, ctx.seed) if ctx.needs_input_grad[0] else None
        return grad_x, grad if ctx.needs_input_grad[1] else None, None, None


def apply_dropout(x: Tensor, p: float, seed: int, added: Tensor | None = None) -> Tensor:
    """`dropout` by the mask of a seed, without a gradient: for operations that make the mask again in backward."""
    x = x.contiguous()
    added = None if added is None else added.contiguous()
    if _alike(x, added) and native.fusable(x, added):
        y = torch.empty_like(x)
        native.run("dropout", x, added, y, seed, keep_steps(p), x.numel(), dtype=x.dtype)
        return y
    mask = dropout_mask(x.shape, p, seed, x.device)
    y = _masked(x, mask, STEPS / keep_steps(p)) if x.device.type == "cpu" else dropout_reference(x, mask, p)
    return y if added is None else added + y


def _alike(x: Tensor, added: Tensor | None) -> bool:
    return added is None or (added.dtype == x.dtype and added.shape == x.shape)


def _masked(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The float's bits times 0 or 1: exact, and several times faster than torch's products with a mask."""
    scaled = x * scale
    bits = scaled.detach().numpy() if x.dtype != torch.bfloat16 else scaled.detach().view(torch.int16).numpy()
    bits = bits.view(_BITS[x.element_size()])
    np.multiply(bits, mask.numpy(), out=bits)
    return scaled


class Dropout(nn.Module):
    """`dropout` while the module trains."""

    __call__: Callable[..., Tensor]

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        return dropout(x, self.p, self.training, added)

    def extra_repr(self) -> str:
        return f"p={self.p}"
