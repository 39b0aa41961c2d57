"""Attention row by row, compiled (nn/ops/native/attention.cpp): no rectangle, no mask, no copy of the heads, and
nothing kept for the backward pass but what goes in: shares are computed once more there (as in arXiv 2205.14135).

It handles the common case: bfloat16 without biases, windows, soft-capping, dropout, prefixes or a cache, on processors
with products of bfloat16 pairs. nn/attention.py handles all others, and has the reference that this must agree with.
Shapes: T tokens of queries, U of keys, B rows, H heads, KV heads of keys and values, L longest row of keys, Dh width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microplane.nn.ops import native
from microplane.nn.ops.autograd import apply

UNIT = 16  # the width of a head must be a multiple of this


def usable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """True if the formats, widths and processor allow it. The caller checks the mask (`MaskSpec.can_run_per_row`)."""
    alike = q.dtype == k.dtype == v.dtype == torch.bfloat16 and q.shape[-1] % UNIT == 0
    return alike and q.device.type == "cpu" and native.has("has_attention")


def row_attention(
    q: Tensor,  # (T, H, Dh)
    k: Tensor,  # (U, KV, Dh), or a rectangle (B, KV, L, Dh)
    v: Tensor,  # as k
    q_lengths: Sequence[int],
    k_lengths: Sequence[int],
    causal: bool,
    scale: float,
) -> Tensor:
    """softmax(scale q k^T) v of each row: (T, H, Dh). Causal: a query sees the keys up to its own place."""
    return apply(
        _RowAttention, q.contiguous(), k.contiguous(), v.contiguous(), tuple(q_lengths), tuple(k_lengths), causal, scale
    )


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_lengths: tuple[int, ...],
        k_lengths: tuple[int, ...],
        causal: bool,
        scale: float,
    ) -> Tensor:
        layout = _layout(q, k, q_lengths, k_lengths, causal, scale)
        y = torch.empty_like(q)
        native.run("attention", q, k, v, y, *layout)
        ctx.save_for_backward(q, k, v)
        ctx.layout = layout
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        native.run("attention_back", grad.contiguous(), q, k, v, grad_q, grad_k, grad_v, *ctx.layout)
        return grad_q, grad_k, grad_v, None, None, None, None


def _layout(
    q: Tensor, k: Tensor, q_lengths: Sequence[int], k_lengths: Sequence[int], causal: bool, scale: float
) -> tuple[Tensor | int | float, ...]:
    """Where each row begins, counted in elements, and how far its heads and tokens are apart."""
    H, Dh = q.shape[1:]
    queries, keys = torch.tensor(q_lengths), torch.tensor(k_lengths)
    q_at = (queries.cumsum(0) - queries) * (H * Dh)
    if k.dim() == 3:
        KV, k_head, k_step = k.shape[1], Dh, k.shape[1] * Dh
        k_at = (keys.cumsum(0) - keys) * k_step
    else:
        KV, k_head, k_step = k.shape[1], k.shape[2] * Dh, Dh
        k_at = torch.arange(len(keys)) * (KV * k_head)
    rows = (q_at, k_at, queries, keys, len(queries))
    return *rows, H, KV, Dh, Dh, H * Dh, k_head, k_step, int(causal), float(scale)
