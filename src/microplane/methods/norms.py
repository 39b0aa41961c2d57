"""Norm tuning, arXiv 2312.11420: of norm(x) * g + b only the gains g and the biases b train, in every norm.

Nothing is added: what is saved are the model's own vectors, turned to float32, for in bfloat16 small updates vanish.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from microplane.errors import ConfigError
from microplane.methods.method import Method, trainable
from microplane.nn.layers import RMSNorm


class Norms(Method):
    name: ClassVar[str] = "norms"
    summary: ClassVar[str] = "the norms' weights and biases train; tiny files, works on every model"
    default_lr: ClassVar[float] = 3e-3
    trains_matrices: ClassVar[bool] = False
    trains: ClassVar[Literal["adapter", "vectors", "weights"]] = "vectors"
    not_convertible: ClassVar[str | None] = "trains norms, which are no linear layers; merge it instead"

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        unfreeze(norm_parameters(model))

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        return norms_apart(model, lr)

    def merge(self, model: nn.Module) -> None:
        """Nothing to do: the vectors are the model's own."""
        model.requires_grad_(False)


def own_modules(model: nn.Module) -> list[nn.Module]:
    """All modules but those of a task head, which trains whole beside any method."""
    head = getattr(model, "task_head", None)
    apart = set() if head is None else set(head.modules())
    return [module for module in model.modules() if module not in apart]


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of all norms.

    Raises:
        ConfigError: if there are none.
    """
    norms = (module for module in own_modules(model) if isinstance(module, nn.LayerNorm | RMSNorm))
    found = [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no layer norm or RMS norm, so no norms can train")
    return found


def unfreeze(parameters: Iterable[nn.Parameter]) -> None:
    """Let these of a model's own parameters train, in float32 at least; each stays the same object."""
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.requires_grad_(True)


def norms_apart(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Two groups: norms without weight decay, which would pull their weights to 0; and the rest."""
    norms = {id(parameter) for module in own_modules(model) for parameter in _of_norm(module)}
    train = trainable(model).values()
    groups = [
        {"params": [p for p in train if id(p) not in norms], "lr": lr},
        {"params": [p for p in train if id(p) in norms], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _of_norm(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False)) if isinstance(module, nn.LayerNorm | RMSNorm) else []
