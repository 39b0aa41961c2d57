"""Norms, softmax and gated activations with their own backward pass, which keeps their inputs and no intermediates.

Autograd would keep every intermediate: for a norm two float32 copies of its input, for a gated activation one copy
more. Here the backward pass computes them again, which costs less than storing and reading them. Where nn/ops/native is
there, each is one pass over memory; else torch's own operations do it.
Shapes: T tokens, D width. Each has its plain reference beside it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microplane.nn.ops import native
from microplane.nn.ops.autograd import apply
from microplane.nn.ops.dropout import STEPS, draw_seed, dropout_mask, dropout_reference, keep_steps


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) in float32, rounded to x's format, times weight (arXiv 1910.07467)."""
    wide = x.to(_wide(x))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight * wide.type_as(x)).type_as(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., D), as the reference."""
    x = x.contiguous()
    if not native.fusable(x):
        return apply(_RMSNorm, x, weight, eps)
    return (
        _fused_rms_norm(x, weight, eps)[0]
        if torch.is_inference_mode_enabled()
        else apply(_FusedRMSNorm, x, weight, eps)
    )


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / deviation * weight + bias in float32 (arXiv 1607.06450), rounded to x's format: (..., D) each.

    The reference is torch's own, which does the work where nothing is compiled.
    """
    if not native.fusable(x := x.contiguous()):
        bias = None if bias is None else bias.to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias, eps)
    return apply(_FusedLayerNorm, x, weight, bias, eps)


class _FusedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        y, (rows, D) = torch.empty_like(x), _rows(x)
        mean, inverse = torch.empty(rows), torch.empty(rows)
        native.run("layer_norm", x, _float(weight), _float(bias), y, mean, inverse, float(eps), rows, D, dtype=x.dtype)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.bias = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        grad, grad_x, (rows, D) = grad.contiguous(), torch.empty_like(x), _rows(x)
        grad_weight, grad_bias = (torch.empty(D) if needed else None for needed in ctx.needs_input_grad[1:3])
        out = (grad_x, grad_weight, grad_bias)
        native.run("layer_norm_back", grad, x, _float(weight), mean, inverse, *out, rows, D, dtype=x.dtype)
        return grad_x, _as(grad_weight, weight.dtype), _as(grad_bias, ctx.bias), None


def _fused_rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms of each row (T,) float32."""
    y, (rows, D) = torch.empty_like(x), _rows(x)
    inverse, threads = torch.empty(rows), native.threads_for(x.numel())
    native.run("rms_norm", x, _float(weight), y, inverse, float(eps), rows, D, dtype=x.dtype, threads=threads)
    return y, inverse


class _FusedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _fused_rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        grad, grad_x, (rows, D) = grad.contiguous(), torch.empty_like(x), _rows(x)
        grad_weight = torch.empty(D) if ctx.needs_input_grad[1] else None
        out = (grad_x, grad_weight)
        native.run("rms_norm_back", grad, x, _float(weight), inverse, *out, rows, D, dtype=x.dtype)
        return grad_x, _as(grad_weight, weight.dtype), None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(_wide(x), copy=True)
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = inverse.div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, inverse)
        normed = wide.mul_(inverse)
        if x.dtype != wide.dtype:  # rounded, and widened again: torch multiplies two formats at a tenth of the speed
            normed = wide.copy_(normed.type_as(x))
        return normed.mul_(weight.to(wide.dtype)).type_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
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


def softmax(scores: Tensor, added: Tensor | None = None, drop: float = 0.0) -> Tensor:
    """(..., L) -> (..., L): the reference of scores + added, computed in float32 and rounded to the format of scores;
    then with dropout, if asked for.

    torch's own, of bfloat16, takes four times as long where L is no multiple of its vectors.
    """
    return apply(_Softmax, scores, added, drop, draw_seed() if drop else 0)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, added: Tensor | None, drop: float, seed: int) -> Tensor:
        if scores.dim() == 4 and native.fusable(scores) and (added is None or added.dtype == scores.dtype):
            shares, dropped = _fused_softmax(scores, added, drop, seed)
        else:
            shares, dropped = _softmax_in_passes(scores, added, drop, seed)
        ctx.save_for_backward(shares)
        ctx.drop, ctx.seed = drop, seed
        ctx.added = None if added is None else (added.shape, added.dtype)
        return shares if dropped is None else dropped

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (shares,) = ctx.saved_tensors
        if native.fusable(shares):
            grad, slope, (rows, L) = grad.contiguous(), torch.empty_like(shares), _rows(shares)
            drop = (int(ctx.drop > 0), ctx.seed, keep_steps(ctx.drop) if ctx.drop else STEPS)
            native.run("softmax_back", grad, shares, slope, *drop, rows, L, dtype=shares.dtype)
        else:
            if ctx.drop:
                grad = dropout_reference(grad, dropout_mask(grad.shape, ctx.drop, ctx.seed, grad.device), ctx.drop)
            slope = torch._softmax_backward_data(grad, shares, -1, shares.dtype)
        if not ctx.needs_input_grad[1]:
            return slope, None, None, None
        shape, dtype = ctx.added
        return slope, slope.sum_to_size(shape).to(dtype), None, None


def _softmax_in_passes(scores: Tensor, added: Tensor | None, drop: float, seed: int) -> tuple[Tensor, Tensor | None]:
    wide = scores.to(_wide(scores))
    if added is not None:
        wide = wide.add_(added.to(wide.dtype)) if wide is not scores else wide + added
    shares = wide.softmax(-1).type_as(scores)
    if not drop:
        return shares, None
    return shares, dropout_reference(shares, dropout_mask(shares.shape, drop, seed, shares.device), drop)


def _fused_softmax(scores: Tensor, added: Tensor | None, drop: float, seed: int) -> tuple[Tensor, Tensor | None]:
    shares = torch.empty_like(scores)
    dropped = torch.empty_like(scores) if drop else None
    strides = [0, 0, 0]
    if added is not None:
        added = added.expand(scores.shape)
        added = added if added.stride(-1) == 1 else added.contiguous()
        strides = list(added.stride()[:3])
    kept = (seed, keep_steps(drop) if drop else STEPS)
    native.run("softmax", scores, added, *strides, shares, dropped, *kept, *scores.shape, dtype=scores.dtype)
    return shares, dropped


SILU, GELU = 0, 1
GATES = {"silu": SILU, "swish": SILU, "gelu_pytorch_tanh": GELU}  # activations with a gate of their own


def gate_reference(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up (arXiv 2002.05202)."""
    return _activated(GATES[activation], gate) * up


def gate_by(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    """(..., M), (..., M) -> (..., M), as the reference, of an activation of `GATES`."""
    kind, gate, up = GATES[activation], gate.contiguous(), up.contiguous()
    return _gate(kind, gate, up) if torch.is_inference_mode_enabled() else apply(_Gate, kind, gate, up)


def _gate(kind: int, gate: Tensor, up: Tensor) -> Tensor:
    if not native.fusable(gate) or gate.dtype != up.dtype:
        return _activated(kind, gate) * up
    y, count = torch.empty_like(gate), gate.numel()
    native.run("gate", gate, up, y, kind, count, dtype=gate.dtype, threads=native.threads_for(count))
    return y


def _activated(kind: int, gate: Tensor) -> Tensor:
    return F.silu(gate) if kind == SILU else F.gelu(gate, approximate="tanh")


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: int, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return _gate(kind, gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if native.fusable(gate) and gate.dtype == up.dtype:
            grad, grad_gate, grad_up = grad.contiguous(), torch.empty_like(gate), torch.empty_like(up)
            native.run("gate_back", grad, gate, up, grad_gate, grad_up, ctx.kind, gate.numel(), dtype=gate.dtype)
            return None, grad_gate, grad_up
        if ctx.kind == SILU:
            grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        else:
            grad_gate = torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh")
        return None, grad_gate, _activated(ctx.kind, gate).mul_(grad)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows(x: Tensor) -> tuple[int, int]:
    """(number of rows, width of a row) along the last dimension."""
    return x.numel() // max(1, x.shape[-1]), x.shape[-1]


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().float().contiguous()


def _as(x: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return x if x is None or dtype is None else x.to(dtype)
