"""y = W x + bias + s B (A dropout(x)): a frozen linear layer with a low-rank update; and the row lengths of W + s B A.

W may be a quantised layer instead, nn/quantised.py, which multiplies in its own way, forward and backward.
The factors are float32 and are cast to the format of x for the products; their gradients are float32 again.
Shapes: x (T, in), W (out, in), A (r, in), B (out, r), y (T, out).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.nn.ops.autograd import apply
from microplane.nn.ops.dropout import apply_dropout, draw_seed, dropout
from microplane.nn.ops.few_rows import linear
from microplane.nn.quantised import QuantisedLinear


def low_rank_linear_reference(
    x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, p: float = 0.0
) -> Tensor:
    low = F.linear(dropout(x, p), A.to(x.dtype))
    return F.linear(x, W, bias) + F.linear(low, (scale * B).to(x.dtype))


def low_rank_linear(
    x: Tensor, W: Tensor | QuantisedLinear, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, p: float = 0.0
) -> Tensor:
    """As the reference, with the sums taken inside the products and no intermediate but A x kept for backward.

    Args:
        p: probability of dropout on the update's input, 0 <= p < 1; its mask is made again in backward from a seed.
    """
    if torch.is_inference_mode_enabled() and x.dim() == 2 and not p:
        return _in_inference(x, W, bias, A, B, scale)
    if isinstance(W, QuantisedLinear):
        x, shape = x.flatten(0, -2), x.shape[:-1]
        return torch.unflatten(apply(_LowRankLinear, x, W, bias, A, B, scale, p, _seed(p)), 0, shape)
    if W.requires_grad or x.dim() != 2:
        return low_rank_linear_reference(x, W, bias, A, B, scale, p)
    return apply(_LowRankLinear, x, W, bias, A, B, scale, p, _seed(p))


@contextmanager
def factors_kept() -> Iterator[None]:
    """Inside, factors that train are rounded to the format of x once, and not for each token. They must not change."""
    before, _kept.factors = _kept.factors, {}
    try:
        yield
    finally:
        _kept.factors = before


class _Kept(threading.local):
    factors: dict[int, tuple[Tensor, Tensor, Tensor]] | None = None  # by id of A: A itself, A and s B rounded


_kept = _Kept()


def _in_inference(
    x: Tensor, W: Tensor | QuantisedLinear, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
) -> Tensor:
    y = W.product(x, bias) if isinstance(W, QuantisedLinear) else linear(x, W, bias)
    A_cast, B_cast = _rounded(A, B, scale, x.dtype)
    return y.addmm_(x @ A_cast.t(), B_cast.t())


def _rounded(A: Tensor, B: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A, and s B, in the format of x."""
    found = _kept.factors.get(id(A)) if _kept.factors is not None else None
    if found is not None and found[1].dtype == dtype:
        return found[1:]
    rounded = A.to(dtype), (scale * B).to(dtype)
    if _kept.factors is not None and isinstance(A, nn.Parameter) and isinstance(B, nn.Parameter):
        _kept.factors[id(A)] = A, *rounded  # which holds A, so that nothing else gets its id
    return rounded


def _seed(p: float) -> int:
    """Drawn only where there is dropout, so that without it no random number is used up."""
    return draw_seed() if p else 0


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor | QuantisedLinear,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: float,
        p: float,
        seed: int,
    ) -> Tensor:
        A_cast, B_cast = A.to(x.dtype), (scale * B).to(x.dtype)
        low = (apply_dropout(x, p, seed) if p else x) @ A_cast.t()  # (T, r)
        y = W.product(x, bias) if isinstance(W, QuantisedLinear) else linear(x, W, bias)
        y.addmm_(low, B_cast.t())
        kept = x if ctx.needs_input_grad[3] else None  # a frozen A needs no inputs
        ctx.save_for_backward(kept, W if isinstance(W, Tensor) else None, A_cast, B_cast, low)
        ctx.scale, ctx.dtype, ctx.base = scale, A.dtype, W if isinstance(W, QuantisedLinear) else None
        ctx.p, ctx.seed = p, seed
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, low = ctx.saved_tensors
        grad_low = grad @ B  # (T, r), carries the scale
        grad_A = None
        if ctx.needs_input_grad[3]:
            grad_A = (grad_low.t() @ (apply_dropout(x, ctx.p, ctx.seed) if ctx.p else x)).to(ctx.dtype)
        grad_B = (grad.t() @ low).to(ctx.dtype).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ W if W is not None else ctx.base.product_back(grad)
            if ctx.p:
                grad_x = apply_dropout(grad_low @ A, ctx.p, ctx.seed, added=grad_x)
            else:
                grad_x = grad_x.addmm_(grad_low, A)
        return grad_x, None, None, grad_A, grad_B, None, None, None


def row_norms_reference(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    lengths: Tensor = torch.linalg.norm(W.to(A.dtype) + scale * (B @ A), dim=1)
    return lengths


def row_norms(W: Tensor, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The length of each row of W + s B A, (out,), without that matrix: |w|^2 + 2s (w A^T) b + s^2 b (A A^T) b.

    Args:
        squares: |w|^2 of each row of W, (out,); where B is zero, their roots are the result to the bit.
    """
    cross = (F.linear(W, A.to(W.dtype)).to(B.dtype) * B).sum(1)
    square = squares + 2 * scale * cross + scale**2 * ((B @ (A @ A.t())) * B).sum(1)
    lengths: Tensor = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
    return lengths
