"""Cross-entropy of the head's output, at the trained positions only and never with all logits in memory.

Shapes: K trained positions, D hidden size, V vocabulary. Losses are sums in float32 over the K positions.
Label smoothing (arXiv 1512.00567, section 7) by e makes the target 1 - e of the right token and e / V of every one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from microplane.nn.ops import native
from microplane.nn.ops.autograd import apply
from microplane.nn.ops.scratch import scratch_buffer

CHUNK = 64  # fewest positions whose logits are in memory at once
MOST = 512
LOGITS = 8 << 20  # between the two, as many as make so many logits: 34 MB in float32
BLOCK = 1 << 19  # numbers of the head's gradient that are summed at once in another format


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    label_smoothing: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    logits = F.linear(hidden, weight.to(hidden.dtype), bias).float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """The sum over K of -log softmax(cap(hidden @ weight.T + bias))[target], the targets smoothed if asked for.

    The gradient is made in the forward pass, chunk by chunk while its logits exist, so nothing of size (K, V) is kept.
    A float32 weight with hidden (K, D) in bfloat16 is cast once; its gradient is summed over the chunks in float32, as
    that of the bias (V,) is.
    """
    return apply(_LinearCrossEntropy, hidden, weight, targets, softcap, label_smoothing, bias)


def chunked_cross_entropy(
    hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The same for any head (an adapted one, say): each chunk's logits are computed again in the backward pass."""
    chunks = zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True)
    losses = [
        checkpoint(_head_loss, head, rows, wanted, label_smoothing, use_reentrant=False) for rows, wanted in chunks
    ]
    return torch.stack(losses).sum()


def _head_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum", label_smoothing=label_smoothing)


def chunk_size(vocabulary: int, logits: int = LOGITS, most: int = MOST) -> int:
    """Positions whose logits are computed at once: more of a small vocabulary, for few make a slow product."""
    return min(most, max(CHUNK, logits // vocabulary))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        label_smoothing: float,
        bias: Tensor | None,
    ) -> Tensor:
        need_hidden, need_weight, need_bias = (ctx.needs_input_grad[number] for number in (0, 1, 5))
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None  # filled by the first chunk
        if grad_weight is not None and not len(targets):
            grad_weight.zero_()
        grad_bias = None
        if bias is not None and need_bias:
            grad_bias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
        weight = weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        fused = _fusable(hidden, softcap)
        size = _positions(len(weight), hidden.element_size(), fused)
        for start in range(0, len(targets), size):
            rows = slice(start, start + size)
            wanted = targets[rows].contiguous()
            logits = scratch_buffer("logits", (len(wanted), len(weight)), hidden.dtype, hidden.device)
            torch.mm(hidden[rows], weight.t(), out=logits)
            slope = need_hidden or need_weight or need_bias
            if fused:
                losses = _losses_fused(logits, wanted, label_smoothing, bias, slope)
            else:
                losses = _losses_in_passes(logits, wanted, label_smoothing, bias, slope, softcap)
            total += losses.sum()
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _put_product(grad_weight, logits, hidden[rows], add=start > 0)
            if grad_bias is not None:
                grad_bias += logits.sum(0, dtype=grad_bias.dtype)
        if bias is not None and grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """In place: nothing else has these gradients, and a second backward pass through them is an error."""
        scaled = [None if saved is None else saved.mul_(grad.to(saved.dtype)) for saved in ctx.saved_tensors]
        return (*scaled[:2], None, None, None, scaled[2])


def _fusable(hidden: Tensor, softcap: float | None) -> bool:
    return not softcap and native.fusable(hidden)


def _positions(vocabulary: int, element_size: int, fused: bool) -> int:
    """Of a chunk: more where the logits have no float32 copy beside them."""
    return chunk_size(vocabulary, 4 * LOGITS // element_size, 4 * MOST) if fused else chunk_size(vocabulary)


def positions_at_once(vocabulary: int, dtype: torch.dtype) -> tuple[int, bool]:
    """Of a chunk on the CPU, and whether its logits have a float32 copy beside them."""
    fused = native.fusable(torch.empty(0, dtype=dtype))
    return _positions(vocabulary, dtype.itemsize, fused), not fused and dtype.itemsize < 4


def _losses_fused(logits: Tensor, targets: Tensor, label_smoothing: float, bias: Tensor | None, slope: bool) -> Tensor:
    """(K,) losses of logits (K, V), which their gradient replaces if asked for, in one compiled pass."""
    wide_bias = None if bias is None else bias.float().contiguous()
    losses = torch.empty(len(targets))
    rest = (float(label_smoothing), int(slope), *logits.shape)
    native.run("cross_entropy", logits, wide_bias, targets, losses, *rest, dtype=logits.dtype)
    return losses


def _losses_in_passes(
    logits: Tensor, targets: Tensor, label_smoothing: float, bias: Tensor | None, slope: bool, softcap: float | None
) -> Tensor:
    """The same by torch's own operations, in float32 or float64, and with a softcap."""
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    wide = (
        logits
        if logits.dtype == exact
        else scratch_buffer("wide logits", logits.shape, exact, logits.device).copy_(logits)
    )
    wanted = targets.unsqueeze(1)
    if bias is not None:
        wide.add_(bias)
    if softcap:
        wide.div_(softcap).tanh_().mul_(softcap)
    capped = 1 - (wide / softcap).square_() if softcap and slope else None
    wide.sub_(wide.amax(1, keepdim=True))
    likely = wide.gather(1, wanted).mul_(1 - label_smoothing)
    if label_smoothing:
        likely.add_(wide.mean(1, keepdim=True), alpha=label_smoothing)
    sums = wide.exp_().sum(1, keepdim=True)
    if slope:
        wide.div_(sums)  # softmax, then minus the target
        if label_smoothing:
            wide.sub_(label_smoothing / wide.shape[1])
        wide.scatter_add_(1, wanted, torch.full_like(likely, label_smoothing - 1))
        if capped is not None:
            wide.mul_(capped)
        if wide is not logits:
            logits.copy_(wide)
    return sums.log() - likely


def _put_product(total: Tensor, grad: Tensor, rows: Tensor, add: bool) -> None:
    """total (V, D) = or += grad (chunk, V) transposed @ rows (chunk, D); a wider total in blocks that stay in cache."""
    if total.dtype == rows.dtype:
        torch.addmm(total, grad.t(), rows, beta=float(add), out=total)
        return
    block = max(1, BLOCK // total.shape[1])
    for into, part in zip(torch.split(total, block), torch.split(grad, block, dim=1), strict=True):
        product = torch.mm(part.t(), rows)
        if add:
            into.add_(product.to(total.dtype))
        else:
            into.copy_(product)
