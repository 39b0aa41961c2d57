"""A matrix with orthonormal columns from a free one: the Cayley transform of a tall matrix, arXiv 2501.19050.

F = [X; Y] with X (r, r) and Y (n, r) goes to [(I - Z)(I + Z)^-1; -2 Y (I + Z)^-1], Z = X - X^T + Y^T Y. The symmetric
part of Z is positive semidefinite, so I + Z can always be inverted. With K = (I + Z)^-1 the upper block is 2 K - I.

Training reaches factors for which the formula fails as it reads: Y^T Y squares what makes them large or nearly equal,
and in float32 the columns are then not orthonormal at all. With Y = Q R, the Cayley transform of a square matrix,

    [I + X - X^T   R^T] [K]   [I]
    [    -R         I ] [W] = [0],    lower block -2 Q W,

needs no square: the matrix is I and a skew one, so no singular value of it is below 1. It is solved in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microplane.nn.ops.autograd import apply


def cayley_reference(F: Tensor) -> Tensor:
    """(r + n, r) -> (r + n, r) with orthonormal columns, by autograd's own steps."""
    rank = F.shape[1]
    X, Y = F[:rank], F[rank:]
    eye = torch.eye(rank, dtype=F.dtype, device=F.device)
    Z = X - X.t() + Y.t() @ Y
    K = torch.linalg.solve(eye + Z, eye)
    return torch.cat([2 * K - eye, -2 * Y @ K])


def cayley(F: Tensor) -> Tensor:
    """As the reference, whatever the factors, with a backward that uses K again instead of solving anew."""
    return apply(_Cayley, F)


class _Cayley(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, F: Tensor) -> Tensor:
        rank, wide = F.shape[1], F.double()
        X, Y = wide[:rank], wide[rank:]
        Q, R = torch.linalg.qr(Y)
        square = torch.eye(rank + len(R), dtype=wide.dtype, device=F.device)
        eye = square[:, :rank].clone()
        square[:rank, :rank] += X - X.t()
        square[:rank, rank:] = R.t()
        square[rank:, :rank] = -R
        solved = torch.linalg.solve(square, eye)
        K, W = solved[:rank], solved[rank:]
        ctx.save_for_backward(Y, K)
        ctx.dtype = F.dtype
        return torch.cat([2 * K - eye[:rank], -2 * Q @ W]).to(F.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Y, K = ctx.saved_tensors
        rank = K.shape[0]
        wide = grad.double()
        upper, lower = wide[:rank], wide[rank:]
        grad_K = upper - Y.t() @ lower  # half of it; the factor 2 comes below
        grad_Z = K.t() @ grad_K @ K.t() * -2
        grad_X = grad_Z - grad_Z.t()
        grad_Y = torch.addmm(lower @ K.t() * -2, Y, grad_Z + grad_Z.t())
        return torch.cat([grad_X, grad_Y]).to(ctx.dtype)
