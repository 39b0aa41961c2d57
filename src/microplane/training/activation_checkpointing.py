"""Activation checkpointing (arXiv 1604.06174): activations are computed again in backward instead of being kept.

The results are the same to the bit, dropout included. `blocks` keeps little more than the input of each block and costs
a third more time. `cheap` computes again only what is cheap (nn/selective_recompute.py): a third of what a block keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from microplane.errors import ConfigError
from microplane.models.contract import module_map_of
from microplane.nn.selective_recompute import selective_recompute


@contextmanager
def recomputed_in_backward(model: nn.Module, what: str) -> Iterator[None]:
    """Within the context, `what` (none, cheap or blocks) is computed again in backward while `model` trains.

    Raises:
        ConfigError: if the model has no list of blocks called `layers`, or is not ours and `what` is cheap.
    """
    if what == "none":
        yield
        return
    stacks = (getattr(module, "layers", None) for module in model.modules())
    blocks = [block for layers in stacks if isinstance(layers, nn.ModuleList) for block in layers]
    if not blocks or (what == "cheap" and module_map_of(model) is not None):
        raise ConfigError(f"train.recompute = {what}: this model has none that are known here; set it to none")
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = _recomputing(block, block.forward, what)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward  # the class's own is found again
            else:
                block.forward = forward


def _recomputing(block: nn.Module, forward: Callable[..., Any], what: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        if what == "blocks":
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        with selective_recompute():
            return forward(*args, **kwargs)

    return run
