"""Cross-entropy of the head's output, at the trained positions only and never with all logits in memory.

Shapes: K trained positions, D hidden size, V vocabulary. Losses are sums in float32 over the K positions.
Label smoothing (arXiv 1512.00567, section 7) by e makes the target 1 - e of the right token and e / V of every one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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
    A float32 weight with hidden (K, D) in bfloat16 is cast once; its gradient is summed over the chunks in float32.
    The bias (V,) does not train.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, softcap, label_smoothing, bias)


def chunked_cross_entropy(
    hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The same for any head (an adapted one, say): each chunk's logits are computed again in the backward pass."""
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    losses = [
        checkpoint(_head_loss, head, rows, wanted, label_smoothing, use_reentrant=False) for rows, wanted in chunks
    ]
    return torch.stack(losses).sum()


def _head_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum", label_smoothing=label_smoothing)


def chunk_size(vocabulary: int) -> int:
    """Positions whose logits are computed at once: more of a small vocabulary, for few make a slow product."""
    return min(MOST, max(CHUNK, LOGITS // vocabulary))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        label_smoothing: float,
        bias: Tensor | None,
    ) -> Tensor:
        assert not ctx.needs_input_grad[5], "the gradient of a head's bias is not made"
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        weight = weight.to(hidden.dtype)
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact)
        size = chunk_size(len(weight))
        # one space for all chunks, so it stays in cache; and one in hidden's format, if that is another
        space = torch.empty(min(size, len(targets)), len(weight), dtype=exact)
        narrow = space if hidden.dtype == exact else torch.empty_like(space, dtype=hidden.dtype)
        for start in range(0, len(targets), size):
            rows, wanted = hidden[start : start + size], targets[start : start + size, None]
            product = torch.mm(rows, weight.t(), out=narrow[: len(rows)])  # (chunk, V)
            logits = product if narrow is space else space[: len(rows)].copy_(product)
            if bias is not None:
                logits.add_(bias)
            if softcap:
                logits.div_(softcap).tanh_().mul_(softcap)
            slope = 1 - (logits / softcap).square_() if softcap and (need_hidden or need_weight) else None
            logits.sub_(logits.amax(1, keepdim=True))
            likely = logits.gather(1, wanted).mul_(1 - label_smoothing)
            if label_smoothing:
                likely.add_(logits.mean(1, keepdim=True), alpha=label_smoothing)
            sums = logits.exp_().sum(1, keepdim=True)
            total += (sums.log() - likely).sum()
            if not (need_hidden or need_weight):
                continue
            grad = logits.div_(sums)  # softmax, then minus the target
            if label_smoothing:
                grad.sub_(label_smoothing / len(weight))
            grad.scatter_add_(1, wanted, torch.full_like(likely, label_smoothing - 1))
            if slope is not None:
                grad.mul_(slope)
            grad = grad if narrow is space else product.copy_(grad)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + size])
            if grad_weight is not None:
                _add_product(grad_weight, grad, rows)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        scaled = [None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


def _add_product(total: Tensor, grad: Tensor, rows: Tensor) -> None:
    """total (V, D) += grad (chunk, V) transposed @ rows (chunk, D); a wider total gets blocks that stay in cache."""
    if total.dtype == rows.dtype:
        total.addmm_(grad.t(), rows)
        return
    block = max(1, BLOCK // total.shape[1])
    for into, part in zip(total.split(block), grad.split(block, dim=1), strict=True):
        into.add_(torch.mm(part.t(), rows).to(total.dtype))
