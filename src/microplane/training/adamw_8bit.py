"""AdamW whose two averages are kept in 8 bits (arXiv 2110.02861): 2 bytes for each weight instead of 8.

A tensor is cut into blocks of 256 numbers. Of each the largest absolute number is kept in float32, and every number as
one of 256 shares of it (section 2.2, "dynamic tree quantization"): finer near zero, over seven powers of ten. A step
reads the averages into float32, a part of a tensor at a time, does what AdamW does, and rounds them again to the
nearest share. Tensors of fewer than 4,096 numbers keep float32 averages. By torch's own operations alone, so on any
device.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from microplane.training.own_optimizer import OwnOptimizer

BLOCK = 256  # numbers
SMALL = 4096  # numbers, below which nothing is rounded
PART = 1 << 18  # numbers that are in float32 at once
POWERS = 7  # of ten, that the shares reach over


@cache
def shares(signed: bool) -> Tensor:
    """The 256 numbers that are told apart, sorted: (256,), from -1 or 0 to 1.

    Between 10^(i-7) and 10^(i-6), for i = 0 to 6, lie the middles of 2^i equal parts, and as many below zero; of
    numbers that are never negative twice as many. 0 and 1 are the last two.
    """
    found = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for power in range(POWERS):
        edges = torch.linspace(0.1, 1.0, 2**power * (1 if signed else 2) + 1, dtype=torch.float64)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (power - POWERS + 1)
        found += [middles, -middles] if signed else [middles]
    return torch.cat(found).sort().values.float()


def rounded(numbers: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(N,) float32 as numbers of shares, (N,) uint8, and the largest absolute number of each block."""
    short = -len(numbers) % BLOCK
    blocks = torch.nn.functional.pad(numbers, (0, short)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    parts = blocks / largest.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    table = shares(signed).to(numbers.device)
    codes = torch.bucketize(parts, (table[1:] + table[:-1]) / 2)
    return codes.view(-1)[: len(numbers)].to(torch.uint8), largest


def restored(codes: Tensor, largest: Tensor, signed: bool) -> Tensor:
    """The inverse of `rounded`, but for the rounding: (N,) float32."""
    numbers = shares(signed).to(codes.device)[codes.long()]
    return numbers * largest.repeat_interleave(BLOCK, output_size=BLOCK * len(largest))[: len(codes)]


class AdamW8bit(OwnOptimizer):
    """AdamW (arXiv 1711.05101) with 8-bit averages; see the module.

    Args:
        lr, betas, eps, weight_decay: as torch's AdamW has them; decay is decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state |= _new_state(weight)
        state["step"] += 1
        flat, grad = weight.view(-1), grad.reshape(-1)
        if len(flat) < SMALL:
            _adamw(flat, grad.float(), state["exp_avg"], state["exp_avg_sq"], state["step"].item(), group)
            return
        for start in range(0, len(flat), PART):
            part, blocks = slice(start, start + PART), slice(start // BLOCK, (start + PART) // BLOCK)
            mean, square = (
                restored(state[name][part], state[f"{name}_max"][blocks], signed) for name, signed in AVERAGES.items()
            )
            _adamw(flat[part], grad[part].float(), mean, square, state["step"].item(), group)
            for (name, signed), average in zip(AVERAGES.items(), (mean, square), strict=True):
                state[name][part], state[f"{name}_max"][blocks] = rounded(average, signed)


AVERAGES = {"exp_avg": True, "exp_avg_sq": False}  # -> whether it may be negative


def _new_state(weight: Tensor) -> dict[str, Tensor]:
    """Averages of zero. The count of steps stays where Python reads it."""
    count, state = weight.numel(), {"step": torch.zeros(())}
    for name, signed in AVERAGES.items():
        if count < SMALL:
            state[name] = torch.zeros(count, device=weight.device)
        else:
            zero = int((shares(signed) == 0).nonzero())
            state[name] = torch.full((count,), zero, dtype=torch.uint8, device=weight.device)
            state[f"{name}_max"] = torch.zeros(-(-count // BLOCK), device=weight.device)
    return state


def _adamw(weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: float, group: dict[str, Any]) -> None:
    """One step of flat tensors, in place."""
    beta1, beta2 = group["betas"]
    mean.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    size = square.div(1 - beta2**step).sqrt_().add_(group["eps"])
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.sub_(mean.div(size).mul_(group["lr"] / (1 - beta1**step)).to(weight.dtype))
