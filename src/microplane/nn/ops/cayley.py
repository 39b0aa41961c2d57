"""A matrix with orthonormal columns from a free one: the Cayley transform of a tall matrix, arXiv 2501.19050.

F = [X; Y] with X (r, r) and Y (n, r) goes to [(I - Z)(I + Z)^-1; -2 Y (I + Z)^-1], Z = X - X^T + Y^T Y. The symmetric
part of Z is positive semidefinite, so I + Z can always be inverted. With K = (I + Z)^-1 the upper block is 2 K - I.

Training reaches factors for which the formula fails as it reads: Y^T Y squares what makes them large or nearly equal,
and in float32 the columns are then not orthonormal at all. With Y = Q R, the Cayley transform of a square matrix,

    [I + X - X^T   R^T] [K]   [I]
    [    -R         I ] [W] = [0],    lower block -2 Q W,

needs no square: the matrix is I and a skew one, so no singular value of it is below 1. It is solved in float64 where
the columns of the formula are found not to be orthonormal.

To find that, a device has to be waited for. There the formula is computed in float64, and what rounding left of the
columns' products is taken out by two steps C <- C (3 I - C^T C) / 2 (Bjorck and Bowie 1971), which are products alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microplane.nn.ops.autograd import apply

ROUNDING = 1e-5  # of columns' products, in all


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
        if F.device.type != "cpu":
            columns, Y, K = _without_waiting(F)
        else:
            columns, Y, K = _by_formula(F)
            if not _orthonormal(columns):
                columns, Y, K = _by_skew_system(F.double())
        ctx.save_for_backward(Y, K)
        return columns.to(F.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Y, K = ctx.saved_tensors
        rank, wide = K.shape[0], grad.to(K.dtype)
        upper, lower = wide[:rank], wide[rank:]
        grad_K = upper - Y.t() @ lower  # half of it; the factor 2 comes below
        grad_Z = K.t() @ grad_K @ K.t() * -2
        grad_X = grad_Z - grad_Z.t()
        grad_Y = torch.addmm(lower @ K.t() * -2, Y, grad_Z + grad_Z.t())
        return torch.cat([grad_X, grad_Y]).to(grad.dtype)


def _by_formula(F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The columns, Y and K, as the formula reads."""
    rank = F.shape[1]
    Y = F[rank:]
    eye = torch.eye(rank, dtype=F.dtype, device=F.device)
    Z = torch.addmm(F[:rank] - F[:rank].t(), Y.t(), Y)
    K, _ = torch.linalg.solve_ex(eye + Z, eye)  # of a matrix that rounding made singular, no numbers
    columns = torch.empty_like(F, memory_format=torch.contiguous_format)
    torch.sub(2 * K, eye, out=columns[:rank])
    torch.mm(Y, -2 * K, out=columns[rank:])
    return columns, Y, K


def _without_waiting(F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The columns, Y and K in float64, which Apple's devices lack, by operations whose numbers nobody looks at."""
    columns, Y, K = _by_formula(F if F.device.type == "mps" else F.double())
    three = 3 * torch.eye(K.shape[0], dtype=K.dtype, device=K.device)
    for _ in range(2):
        columns = columns @ (three - columns.t() @ columns) / 2
    return columns, Y, K


def _orthonormal(columns: Tensor) -> bool:
    """Whether they are so but for rounding; NaN is not."""
    off = columns.t() @ columns - torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
    return bool(torch.linalg.vector_norm(off) <= ROUNDING)


def _by_skew_system(F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a matrix in float64, whatever it is."""
    rank = F.shape[1]
    X, Y = F[:rank], F[rank:]
    Q, R = torch.linalg.qr(Y)
    system = torch.eye(rank + len(R), dtype=F.dtype, device=F.device)
    eye = system[:, :rank].clone()
    system[:rank, :rank] += X - X.t()
    system[:rank, rank:] = R.t()
    system[rank:, :rank] = -R
    solved = torch.linalg.solve(system, eye)
    K, W = solved[:rank], solved[rank:]
    return torch.cat([2 * K - eye[:rank], -2 * Q @ W]), Y, K
