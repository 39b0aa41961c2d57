"""What the optimizers that are written here share: a step that goes from tensor to tensor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def unmarked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch's without what it was decorated with."""
    return getattr(function, "__wrapped__", function)


class OwnOptimizer(torch.optim.Optimizer):
    """Updates each weight that has a gradient, by itself."""

    zero_grad = unmarked(torch.optim.Optimizer.zero_grad)  # see `optim.AdamW`
    add_param_group = unmarked(torch.optim.Optimizer.add_param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    @abstractmethod
    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """One step of one tensor, in place."""
