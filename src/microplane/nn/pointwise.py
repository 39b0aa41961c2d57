"""Chains of point-wise operations with a backward of their own, which keep their inputs and nothing in between.

Autograd would keep every intermediate: for a norm two float32 copies of its input, for a gated activation one copy
more. Here the backward pass computes them again, which costs less than storing and reading them.
Shapes: T tokens, D width. Each has its plain reference beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) in float32, rounded to x's format, times weight (arXiv 1910.07467)."""
    wide = x.to(_wide(x))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight * wide.type_as(x)).type_as(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., D), as the reference."""
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(_wide(x), copy=True)
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = inverse.div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, inverse)
        normed = wide.mul_(inverse)
        if x.dtype != wide.dtype:  # rounded, and widened again: torch multiplies two formats at a tenth of the speed
            normed = wide.copy_(normed.type_as(x))
        return normed.mul_(weight.to(wide.dtype)).type_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, inverse = ctx.saved_tensors
        normed = x.to(inverse.dtype, copy=True).mul_(inverse)
        wide = grad.to(inverse.dtype)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (wide * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            inner = wide * weight.to(inverse.dtype)
            along = torch.linalg.vecdot(inner, normed).unsqueeze(-1).div_(-x.shape[-1])
            grad_x = inner.addcmul_(normed, along).mul_(inverse).type_as(x)
        return grad_x, grad_weight, None


def softmax_reference(scores: Tensor, added: Tensor | None = None) -> Tensor:
    """exp(s) / sum exp(s) along the last dimension, of s = scores + added."""
    return (scores if added is None else scores + added).softmax(-1)


def softmax(scores: Tensor, added: Tensor | None = None) -> Tensor:
    """(..., L) -> (..., L): the reference of scores + added, computed in float32 and rounded to the format of scores.

    torch's own, of bfloat16, takes four times as long where L is no multiple of its vectors.
    """
    return _Softmax.apply(scores, added)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor, added: Tensor | None) -> Tensor:
        wide = scores.to(_wide(scores))
        if added is not None:
            wide = wide.add_(added.to(wide.dtype)) if wide is not scores else wide + added
        shares = wide.softmax(-1).type_as(scores)
        ctx.save_for_backward(shares)
        ctx.added = None if added is None else (added.shape, added.dtype)
        return shares

    @staticmethod
    def backward(ctx, grad: Tensor):
        (shares,) = ctx.saved_tensors
        slope = torch._softmax_backward_data(grad, shares, -1, shares.dtype)
        if not ctx.needs_input_grad[1]:
            return slope, None
        shape, dtype = ctx.added
        return slope, slope.sum_to_size(shape).to(dtype)


def silu_gate_reference(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202)."""
    return F.silu(gate) * up


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """(..., M), (..., M) -> (..., M), as the reference."""
    return _SiluGate.apply(gate, up)


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor):
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, grad_up


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
