"""Attention where each head has a rectangle of its own: queries (B, H, S, Dh), keys and values (B, KV, L, Dh).

All scores are made a few at a time, and those of long rows are not kept but made again in backward; or torch's own
attention does the work, where it is not slower.
"""

from __future__ import annotations

from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from microplane.nn.ops.pointwise import softmax
from microplane.nn.selective_recompute import computed_again, recomputing

CELLS = 1 << 21  # scores computed at once: more would not stay in the processor's caches
KEPT = 512**2  # scores of one head of a row: of more, none are kept, and all are made again in backward
# Scores of one head of a row from which torch's own attention, which makes a few at a time and keeps none, is not
# slower than products of all of them: in bfloat16 it is at half the speed of these.
BY_TORCH = {torch.float32: 256**2, torch.bfloat16: 2048**2}
ONCE_BY_TORCH = 1024**2  # the same of other formats, and of all in earlier versions


def large_scores(longest: int) -> bool:
    """True if the scores of a row of so many tokens are not kept, but made again in backward."""
    return longest**2 > KEPT


def rounds_otherwise(longest: int, dtype: torch.dtype) -> bool:
    """True if a row of so many tokens was computed in another way by earlier versions, to other last digits."""
    return longest**2 > min(BY_TORCH.get(dtype, ONCE_BY_TORCH), ONCE_BY_TORCH)


def attend_in_heads(
    q: Tensor,  # (B, H, S, Dh)
    k: Tensor,  # (B, KV, L, Dh)
    v: Tensor,
    mask: Tensor | None,  # added to the scores (B, H, S, L)
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """softmax(scale q k^T + mask) v of one rectangle for each head: (B, H, S, Dh)."""
    trains = mask is not None and mask.requires_grad  # then torch's own keeps all scores
    if not trains and faster_by_torch(q, k, softcap, dropout):
        return attend_by_torch(q, k, v, mask, scale, causal=False)
    copies = 2 if dropout else 1  # before it and after
    again = recomputing() or copies * q.shape[2] * k.shape[2] > KEPT
    return _attend_in_parts(q, k, v, mask, scale, softcap, dropout, again)


def faster_by_torch(q: Tensor, k: Tensor, softcap: float | None, dropout: float) -> bool:
    """True if torch's own attention can compute it, and is not slower."""
    least = BY_TORCH.get(q.dtype, ONCE_BY_TORCH) if q.device.type == "cpu" else 256**2
    return softcap is None and not dropout and q.shape[2] * k.shape[2] > least


def _attend_in_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
    again: bool = False,
) -> Tensor:
    """A few rows, or a few heads of one row, at a time: (B, H, S, Dh). `again`: in backward each part is computed once
    more, so that its scores are not kept."""
    B, H, S, _ = q.shape
    KV, L = k.shape[1:3]
    dim, count = (0, B) if B > 1 else (1, KV)
    at_once = max(1, CELLS * count // max(1, B * H * S * L))
    if at_once >= count or count == 1:
        given = q, k, v, mask, scale, softcap, dropout
        return computed_again(_attend_at_once, *given) if again else _attend_at_once(*given)
    of = q.shape[dim] // count * at_once
    masks = repeat(mask) if mask is None or mask.shape[dim] == 1 else torch.split(mask, of, dim)
    split = (torch.split(x, n, dim) for x, n in ((q, of), (k, at_once), (v, at_once)))
    mixed = [
        _attend_in_parts(queries, keys, values, masked, scale, softcap, dropout, again)
        for queries, keys, values, masked in zip(*split, masks, strict=False)
    ]
    return torch.cat(mixed, dim)


def _attend_at_once(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None, dropout: float
) -> Tensor:
    """Batched matrix products. The heads of a group are stacked, so that k and v are never repeated."""
    B, H, S, Dh = q.shape
    KV, L = k.shape[1:3]
    stacked = (q if scale == 1.0 else q * scale).reshape(B * KV, H // KV * S, Dh)
    k, v = k.reshape(B * KV, L, Dh), v.reshape(B * KV, L, Dh)
    scores = torch.bmm(stacked, k.transpose(1, 2)).view(B, H, S, L)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    shares = softmax(scores, mask, dropout)
    return torch.bmm(shares.view(B * KV, H // KV * S, L), v).view(B, H, S, Dh)


def attend_by_torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """By torch's own attention: (B, H, S, Dh)."""
    G = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)  # small compared to the scores
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
