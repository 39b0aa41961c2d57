"""AdamW over a method's parameter groups, and the learning rate over the steps."""

from __future__ import annotations

import math

import torch
from torch import nn

from microplane.config import TrainKnobs
from microplane.errors import ConfigError
from microplane.methods import Method


def make_optimizer(method: Method, model: nn.Module, knobs: TrainKnobs) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over the method's groups; each group remembers its peak rate as `peak_lr`."""
    lr = knobs.lr or method.default_lr
    groups = [group for group in method.param_groups(model, lr) if group["params"]]
    if not groups:
        raise ConfigError(f"method {method.name}: nothing trains with these knobs")
    for group in groups:
        group["peak_lr"] = group["lr"]
    return torch.optim.AdamW(groups, betas=knobs.betas, eps=knobs.eps, weight_decay=knobs.weight_decay, fused=True)


def warmup_steps(warmup: float, total: int) -> int:
    """A share of all steps below 1, else a number of steps."""
    return round(warmup * total) if warmup < 1 else int(warmup)


def schedule(name: str, step: int, total: int, warmup: int) -> float:
    """The factor on the peak rate at optimizer step `step` (from 0) of `total`.

    Rises linearly over the first `warmup` steps, then stays, falls linearly, or falls as half a cosine to 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if name == "constant":
        return 1.0
    if name == "linear":
        return 1.0 - done
    return 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set all groups to `factor` of their peak; returns the first group's rate, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return optimizer.param_groups[0]["lr"]
