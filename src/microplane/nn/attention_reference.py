"""Attention over rows as its formula reads, which nn/attention.py must agree with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from microplane.nn.rows import Rows


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
    keys: Sequence[int] | None = None,
    bias: Tensor | None = None,  # (H, S, L)
) -> Tensor:
    """`attend` without a cache, as the formula reads: row by row, with k and v repeated for the heads of a group."""
    G = q.shape[1] // k.shape[1]
    mixed = []
    others = (torch.split(x, list(keys or rows.lengths)) for x in (k, v))
    for q_row, k_row, v_row in zip(torch.split(q, list(rows.lengths)), *others, strict=True):
        k_row, v_row = k_row.repeat_interleave(G, dim=1), v_row.repeat_interleave(G, dim=1)  # (n, H, Dh)
        scores = torch.einsum("ihd,jhd->hij", q_row, k_row) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias[:, : len(q_row), : len(k_row)]
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if keys is None:
            place = torch.arange(len(q_row), device=q.device)
            ago = place[:, None] - place[None]  # (n, n)
            hidden = (ago if causal else ago.abs()) >= (window or len(q_row))
            wide = wide.masked_fill(hidden | (ago < 0) if causal else hidden, -math.inf)
        mixed.append(torch.einsum("hij,jhd->ihd", wide.softmax(-1).to(q.dtype), v_row))
    return torch.cat(mixed)
