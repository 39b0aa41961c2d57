"""Dropout (JMLR 15, 2014, Srivastava et al.) whose mask costs little on a CPU.

torch draws the mask number by number on one core: 28% of a T5 training step. Here it comes from the raw words of
SFC64, four elements to a word, so a probability is a multiple of 1/65536. One number of torch's own generator seeds
it: `torch.manual_seed` decides every mask, a continued run draws the same ones, and so does activation checkpointing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import SFC64
from torch import Tensor, nn

STEPS = 1 << 16  # of probability: one 16-bit number decides on one element

_BITS = {2: np.int16, 4: np.int32, 8: np.int64}  # the whole number as wide as a float of so many bytes


def keep_steps(p: float) -> int:
    """How many of the 65,536 numbers keep an element; at least one keeps it and one drops it."""
    return min(STEPS - 1, max(1, round((1 - p) * STEPS)))


def dropout_mask(shape: torch.Size, p: float) -> Tensor:
    """Which elements stay: bool of `shape`, each True with probability `keep_steps(p) / 65536`."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    count = shape.numel()
    words = SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    return torch.from_numpy(words < keep_steps(p)).view(shape)


def dropout_reference(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Zero where the mask is False, and divided by the share that is kept elsewhere."""
    return torch.where(mask, x * (STEPS / keep_steps(p)), 0)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """x (...) with a share `p` of its elements zeroed, the rest scaled up so that the expectation is x.

    As the reference with a new mask, which is all that the backward pass keeps: a byte per element. Outside of
    training, and for p = 0, x itself. 0 <= p < 1.
    """
    if not training or p == 0:
        return x
    assert 0 < p < 1, f"dropout of {p}: must be at least 0 and below 1"
    return _Dropout.apply(x, dropout_mask(x.shape, p), STEPS / keep_steps(p))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _masked(x, mask, scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (mask,) = ctx.saved_tensors
        return _masked(grad, mask, ctx.scale), None, None


def _masked(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The float's bits times 0 or 1: exact, and several times faster than torch's products with a mask."""
    scaled = (x * scale).contiguous()
    bits = scaled.detach().numpy() if x.dtype != torch.bfloat16 else scaled.detach().view(torch.int16).numpy()
    bits = bits.view(_BITS[x.element_size()])
    np.multiply(bits, mask.numpy(), out=bits)
    return scaled


class Dropout(nn.Module):
    """`dropout` while the module trains."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
