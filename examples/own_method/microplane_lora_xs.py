"""LoRA-XS, arXiv 2405.17604: h = W x + s B R A x, with A (r, in) and B (out, r) frozen and R (r, r) trained.

A and B are the r largest singular triplets of W = U S V^T: A = V^T and B = U S. R starts at zero here, so nothing
changes at first (the paper draws it with a deviation of 1e-5). A layer trains r^2 numbers, whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from microplane.errors import ConfigError
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers
from microplane.methods.init.factors import top_singular
from microplane.methods.linear_method import LinearMethod


class LoRAXSLinear(AdaptedLinear):
    A: Tensor  # (r, in)
    B: Tensor  # (out, r)

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__(base)
        if rank > min(self.in_features, self.out_features):
            raise ConfigError(f"method.rank = {rank}: a layer here is {self.out_features} x {self.in_features}")
        self.R = nn.Parameter(torch.zeros(rank, rank, device=self.device))
        self.register_buffer("A", torch.zeros(rank, self.in_features, device=self.device))
        self.register_buffer("B", torch.zeros(self.out_features, rank, device=self.device))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_low_rank(x, self.R @ self.A, self.B, self.scale)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.R @ self.A, self.scale * self.B

    def delta(self) -> Tensor:
        A, B = self.low_rank()
        return B @ A

    def saved(self) -> dict[str, Tensor]:
        """A and B too: singular vectors have other signs on another machine."""
        return {"R": self.R, "A": self.A, "B": self.B}


class LoRAXS(LinearMethod):
    name: ClassVar[str] = "lora-xs"
    summary: ClassVar[str] = "an r x r matrix between the singular vectors of each weight; few weights train"
    default_lr: ClassVar[float] = 4e-3
    layer: ClassVar[type[AdaptedLinear]] = LoRAXSLinear

    rank: int = Field(32, ge=1, description="r: singular vectors kept, and both sides of what trains")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank")

    def wrap(self, base: nn.Linear) -> LoRAXSLinear:
        return LoRAXSLinear(base, self.rank, self.alpha / self.rank)

    def init_from_data(
        self,
        model: nn.Module,
        losses: Sequence[Callable[[], Tensor]],
        weights: Callable[[str], Tensor] | None = None,
    ) -> None:
        for _, layer in adapted_layers(model, LoRAXSLinear):
            U, S, V = top_singular(layer.base.weight.detach(), self.rank)
            layer.A.copy_(V.t())
            layer.B.copy_(U * S)
