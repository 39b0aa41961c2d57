"""Pairs (A, B) out of a matrix. Shapes: W, G (out, in); A (r, in); B (out, r). The change is s B A."""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLED, ITERATIONS = 4, 8  # of the random subspace: so many times the rank, and so many power iterations
SMALL = 256  # rows or columns up to which the exact decomposition takes milliseconds


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def top_singular(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular triplets U (out, k), S (k,), V (in, k); exact, or by random subspaces where that pays.

    arXiv 0909.4061. The power iterations leave directions whose singular values are nearly equal mixed among
    themselves, which none of the starts minds.
    """
    subspace = OVERSAMPLED * count
    if min(matrix.shape) <= max(SMALL, 2 * subspace):
        U, S, Vh = torch.linalg.svd(wide(matrix), full_matrices=False)
        return U[:, :count], S[:count], Vh[:count].t()
    U, S, V = torch.svd_lowrank(wide(matrix), q=subspace, niter=ITERATIONS)
    return U[:, :count], S[:count], V[:, :count]


def pissa(W: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """PiSSA, arXiv 2404.02948: A = sqrt(S/s) V^T, B = U sqrt(S/s) of the `rank` largest triplets, so s B A is them."""
    U, S, V = top_singular(W, rank)
    root = (S / scale).sqrt()
    return (V * root).t(), U * root


def olora(W: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """OLoRA, arXiv 2406.01775: W = QR, B = Q[:, :r], A = R[:r]. The scale stays out of it, as in the authors' code."""
    Q, R = torch.linalg.qr(wide(W))
    return R[:rank], Q[:, :rank]


def loftq(W: Tensor, quantised: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """LoftQ, arXiv 2310.08659, one round: s B A is the part of rank r nearest to W - Q.

    Further rounds would quantise W - s B A anew, and the adapter would then belong to codes that nobody else has.
    """
    return pissa(wide(W) - wide(quantised), rank, scale)


def lora_ga(G: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    """LoRA-GA, arXiv 2407.05000, as the authors' code: A = c V[:, :r]^T, B = c U[:, r:2r], c = out^(1/4) / sqrt(gamma).

    peft instead multiplies B by the singular values and scales B alone.
    """
    U, _, V = top_singular(G, 2 * rank)
    factor = len(G) ** 0.25 / gamma**0.5
    return factor * V[:, :rank].t(), factor * U[:, rank : 2 * rank]
