"""Activation checkpointing (arXiv 1604.06174): a block keeps its input only, and is computed again in backward.

Less memory for up to a third more time. The results are the same to the bit, dropout included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: nn.Module, share: float) -> None:
    """Let the first `share` of each stack's blocks be computed again while `model` trains.

    The first, since in backward their turn comes last: what the others kept is given back by then.
    """
    for stack in model.modules():
        blocks = getattr(stack, "layers", None)
        if isinstance(blocks, nn.ModuleList):
            for block in list(blocks)[: math.ceil(share * len(blocks))]:
                block.forward = _again(block, block.forward)


def _again(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
