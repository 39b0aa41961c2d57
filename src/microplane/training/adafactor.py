"""Adafactor, arXiv 1804.04235: a second moment of rows and columns instead of one number for each weight.

As T5 was trained with it (t5x): no momentum, step by step for a tensor W with gradient G and t = 1, 2, ...

    beta2_t = 1 - t^-0.8
    R_t = beta2_t R_(t-1) + (1 - beta2_t) mean of (G^2 + eps1) over the columns; C_t the same over the rows
    V_t = R_t C_t^T / mean(R_t);  for a small tensor V_t is the average of G^2 + eps1 itself
    U = G / sqrt(V_t), divided by max(1, RMS(U) / clip)
    W = W - a U - lr weight_decay W, with a = lr max(eps2, RMS(W)) if scale_parameter, else a = lr
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from microplane.training.own_optimizer import OwnOptimizer


class Adafactor(OwnOptimizer):
    """Adafactor without momentum, its state in float32 whatever the weights' format.

    Args:
        lr: the size of a step: of each weight, or with `scale_parameter` as a share of the tensor's RMS.
        decay: the exponent of beta2_t.
        clip: largest RMS of an update before `lr`.
        eps: eps1, which keeps the second moment above 0, and eps2, the least RMS that `scale_parameter` counts with.
        scale_parameter: lr is relative to each tensor's size. A tensor of zeros then moves by lr x eps2 only.
        weight_decay: decoupled, by lr x weight_decay, as AdamW's.
        min_factored: tensors whose second largest dimension is at least this have the moment of rows and columns.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        decay: float = 0.8,
        clip: float = 1.0,
        eps: tuple[float, float] = (1e-30, 1e-3),
        scale_parameter: bool = False,
        weight_decay: float = 0.0,
        min_factored: int = 128,
    ):
        defaults = {"lr": lr, "decay": decay, "clip": clip, "eps": eps, "scale_parameter": scale_parameter}
        super().__init__(params, defaults | {"weight_decay": weight_decay, "min_factored": min_factored})

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        grad, state = grad.to(exact), self.state[weight]
        factors = factored_dims(grad.shape, group["min_factored"])
        state.setdefault("step", torch.zeros(()))
        state["step"] += 1
        new_share = state["step"].item() ** -group["decay"]  # 1 - beta2_t
        eps1 = group["eps"][0]
        square = grad.square()
        if factors is None:
            _average(state, "square", square.add_(eps1), new_share)
            update = torch.rsqrt(state["square"], out=square).mul_(grad)
        else:
            smaller, larger = factors
            rows = _average(state, "rows", square.mean(larger, keepdim=True).add_(eps1), new_share)
            columns = _average(state, "columns", square.mean(smaller, keepdim=True).add_(eps1), new_share)
            shares = (rows / rows.mean(smaller, keepdim=True)).rsqrt_()
            update = torch.mul(grad, shares, out=square).mul_(columns.rsqrt())
        on_host = weight.device.type == "cpu"
        size = _size(update, weight.to(exact), group) if on_host else _size_there(update, weight.to(exact), group)
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        if isinstance(size, float):
            weight.add_(update, alpha=-size)  # summed in float32, rounded once
        else:
            weight.sub_(update.mul_(size))


def _size(update: Tensor, weight: Tensor, group: dict[str, Any]) -> float:
    """What the update is multiplied by."""
    size: float = group["lr"] / max(1.0, _rms(update) / group["clip"])
    return size * max(group["eps"][1], _rms(weight)) if group["scale_parameter"] else size


def _size_there(update: Tensor, weight: Tensor, group: dict[str, Any]) -> Tensor:
    """The same as a number on the device, which nobody has to wait for."""
    size: Tensor = group["lr"] / (_rms_there(update) / group["clip"]).clamp(min=1.0)
    return size * _rms_there(weight).clamp(min=group["eps"][1]) if group["scale_parameter"] else size


def factored_dims(shape: torch.Size, least: int) -> tuple[int, int] | None:
    """The two largest dimensions, the larger last, if both have at least `least` elements; None: not factored."""
    if len(shape) < 2:
        return None
    smaller, larger = sorted(range(len(shape)), key=lambda dim: shape[dim])[-2:]
    return (smaller, larger) if shape[smaller] >= least else None


def _average(state: dict[str, Tensor], name: str, new: Tensor, share: float) -> Tensor:
    """The running average under `name`, after `new` took its share; the first one is `new` itself."""
    if name in state:
        state[name].lerp_(new, share)
    else:
        state[name] = new.clone()
    return state[name]


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / math.sqrt(x.numel())


def _rms_there(x: Tensor) -> Tensor:
    root: Tensor = torch.linalg.vector_norm(x) / math.sqrt(x.numel())
    return root
