"""Activation checkpointing (arXiv 1604.06174): a module keeps its input only, and is computed again in backward.

The results are the same to the bit, dropout included. Whole blocks keep next to nothing and cost a third more time. The
attention alone has but a fifth of a block's products, yet keeps a third of its activations: the scores most of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from microplane.errors import ConfigError


def recompute(model: nn.Module, what: str) -> None:
    """Let `what` (none, attention or blocks) be computed again in backward while `model` trains.

    Raises:
        ConfigError: if a model that is not ours has no such parts under the names that they have in ours.
    """
    found = what == "none"
    for stack in model.modules():
        blocks = getattr(stack, "layers", None)
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            module = {"none": None, "attention": getattr(block, "attention", None), "blocks": block}[what]
            if isinstance(module, nn.Module):
                module.forward = _again(module, module.forward)
                found = True
    if not found:
        raise ConfigError(f"train.recompute = {what}: this model has none that are known here; set it to none")


def _again(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
