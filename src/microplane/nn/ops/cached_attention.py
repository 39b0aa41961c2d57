"""Attention of one new token a row to all that its row holds: what each step of generation does, in one pass.

Turning by rotary positions, writing key and value into the cache, scores, softmax and the mix are one operation, with
float32 inside. nn/attention.py does the same in steps, handles what this does not, and is the reference.
Shapes: B rows, H heads, KV heads of keys and values, C capacity of the cache, Dh width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microplane.nn.cache import Cache
from microplane.nn.ops import native
from microplane.nn.rows import Rows

UNIT = 16  # the width of a head must be a multiple of this


def usable(q: Tensor, rows: Rows, cache: Cache) -> bool:
    """Whether the operation can take these: one token a row, inside `torch.inference_mode`."""
    one_each = torch.is_inference_mode_enabled() and rows.longest == 1 and type(cache).append is Cache.append
    return one_each and q.shape[-1] % UNIT == 0 and native.fusable(q)


def cached_attention(
    q: Tensor,  # (B, H, Dh)
    k: Tensor,  # (B, KV, Dh)
    v: Tensor,  # (B, KV, Dh)
    angles: tuple[Tensor, Tensor] | None,
    rows: Rows,
    cache: Cache,
    layer: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """softmax(scale q k^T) v over the row's keys, or the last `window` of them: (B, H, Dh). k and v are appended.

    Args:
        angles: cosines and sines (B, 1, Dh/2) that q and k are turned by first, as `nn.position.rotate` does.
    """
    (B, H, Dh), KV = q.shape, k.shape[1]
    keys, values = cache.room(layer, k, v, rows)
    shares, y = torch.empty(B * H, keys.shape[2]), torch.empty_like(q)
    cosines, sines = (None, None) if angles is None else (part.contiguous() for part in angles)
    given = q, k.contiguous(), v.contiguous(), cosines, sines, keys, values, cache.starts(), shares, y
    native.run("cached_attention", *given, float(scale), B, H, KV, keys.shape[2], Dh, window or 0, dtype=q.dtype)
    return y
