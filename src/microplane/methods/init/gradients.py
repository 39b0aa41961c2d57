"""Gradients with respect to frozen weights: G = sum over tokens of dL/dy x^T, caught on the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from microplane.models.contract import in_eval_mode
from microplane.nn.ops.autograd import apply

AT_ONCE = 1 << 30  # bytes of gradients that are held at a time; where there are more, the rows are gone through again


def weight_gradients(
    model: nn.Module, modules: Mapping[str, nn.Module], losses: Sequence[Callable[[], Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """(name, dL/dW of shape (out, in)) of each linear layer, L the sum of the losses; at the weights as they are."""
    for group in _groups(modules):
        gradients: dict[str, Tensor] = {}
        hooks = [
            modules[name].register_forward_hook(partial(_tap, gradients=gradients, name=name)) for name in group
        ]  # fmt: skip
        try:
            with in_eval_mode(model):
                for loss in losses:
                    torch.autograd.backward(loss())
        finally:
            model.zero_grad(set_to_none=True)
            for hook in hooks:
                hook.remove()
        for name in group:
            yield name, gradients.pop(name)


def _groups(modules: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0
    for name, module in modules.items():
        size = 4 * int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
        if group and held + size > AT_ONCE:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    yield group


def _tap(module: nn.Module, args: Any, y: Tensor, gradients: dict[str, Tensor], name: str) -> Tensor:
    return apply(_Tap, y, args[0].detach(), gradients, name)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, gradients: dict[str, Tensor], name: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gradients, ctx.name = gradients, name
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        exact = torch.promote_types(grad.dtype, torch.float32)
        product = grad.flatten(0, -2).t().to(exact) @ x.flatten(0, -2).to(exact)
        ctx.gradients[ctx.name] = ctx.gradients[ctx.name] + product if ctx.name in ctx.gradients else product
        return grad, None, None, None
