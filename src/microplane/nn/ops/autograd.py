"""A typed call of torch's autograd functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """function.apply(*arguments), for functions that return one tensor. torch itself gives `apply` no types."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def with_gradient(y: Tensor, gradient: Tensor) -> Tensor:
    """A number whose gradient with respect to y is a given one. Where torch's `backward` itself is handed a gradient it
    imports sympy, to compare shapes that it does not know: a second of each process."""
    return apply(_WithGradient, y, gradient)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None
