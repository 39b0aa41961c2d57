"""NB-LoRA, arXiv 2501.19050: delta W = 2 A^T diag(s) B, with A A^T + B B^T = I, so sigma_j(delta W) <= s_j.

[B^T; A^T] is the Cayley transform of the free factors [B~^T; A~^T], and s = delta softmax(v / temperature)^(1/p), whose
p-norm is delta: the update never leaves the Schatten-p ball of radius delta (p = 1 nuclear, 2 Frobenius, inf spectral).
Start: A~ = 0, which makes A = 0 exactly since B~ is on top of the stack; B~ as LoRA's A; v = 0.

There is no alpha: delta takes its place. The transform is computed in the factors' own format (float32, or float64),
never in the base's, and in float64 on a device and where its columns would not be orthonormal, so that the bound holds
whatever training reaches (nn/ops/cayley.py). The text of the paper was not at hand: the formulas are derived anew and
proven by the tests; temperature and delta have no published default that we know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from microplane.errors import ConfigError
from microplane.methods.adapted_linear import AdaptedLinear, drawn_rows
from microplane.methods.linear_method import LinearMethod
from microplane.nn.ops.cayley import cayley


class NBLoRALinear(AdaptedLinear):
    def __init__(self, base: nn.Linear, method: NBLoRA):
        super().__init__(base)
        self.method = method
        device, rank = base.weight.device, method.rank
        if rank > min(self.in_features, self.out_features):
            raise ConfigError(
                f"method.rank = {rank}: a layer of this model is {self.out_features} x {self.in_features}; "
                "the rank of nb-lora can be at most the smaller of the two"
            )
        self.free_A = nn.Parameter(torch.zeros(rank, self.out_features, device=device))
        self.free_B = nn.Parameter(drawn_rows(rank, self.in_features, device))
        if method.bounds_train:
            self.v = nn.Parameter(torch.zeros(rank, device=device))
        self.kept: tuple[Tensor, Tensor] | None = None

    def bounds(self) -> Tensor:
        """s (r), its p-norm is delta."""
        v = self.v if self.method.bounds_train else self.free_A.new_zeros(len(self.free_A))
        return self.method.delta * torch.softmax(v / self.method.temperature, 0) ** self.method.exponent

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) with orthonormal rows side by side: A (r, out), B (r, in), A A^T + B B^T = I."""
        columns = cayley(torch.cat([self.free_B, self.free_A], 1).t())  # (in + out, r)
        return columns[self.in_features :].t(), columns[: self.in_features].t()

    def low_rank(self) -> tuple[Tensor, Tensor]:
        if self.kept is not None and not self.free_A.requires_grad:
            return self.kept
        A, B = self.factors()
        pair = B, 2 * A.t() * self.bounds()
        self.kept = None if self.free_A.requires_grad else pair  # nothing changes any more: transform once
        return pair

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_low_rank(x, *self.low_rank(), 1.0)

    def delta(self) -> Tensor:
        A, B = self.low_rank()
        return B @ A

    def load_saved(self, saved: Mapping[str, Tensor]) -> None:
        super().load_saved(saved)
        self.kept = None


class NBLoRA(LinearMethod):
    name: ClassVar[str] = "nb-lora"
    summary: ClassVar[str] = "low-rank updates whose size is bounded, so that a high rate or rank cannot run away"
    default_lr: ClassVar[float] = 2e-3
    layer: ClassVar[type[AdaptedLinear]] = NBLoRALinear

    rank: int = Field(16, ge=1, description="r, the rank of the update")
    delta: float = Field(4.0, gt=0, description="radius: the p-norm of the update's singular values stays within it")
    p: float | Literal["inf"] = Field(2.0, description="1 nuclear, 2 Frobenius, inf spectral norm; at least 1")
    temperature: float = Field(1.0, gt=0, description="how slowly the bounds of single directions move apart")
    bounds: Literal["trained", "fixed"] = Field("trained", description="of the directions; fixed: all equal")

    @field_validator("p")
    @classmethod
    def _p(cls, p: float | str) -> float | str:
        if isinstance(p, float) and p < 1:
            raise ValueError("must be at least 1, or inf")
        return p

    @property
    def exponent(self) -> float:
        return 0.0 if isinstance(self.p, str) else 1 / self.p

    @property
    def bounds_train(self) -> bool:
        """One direction, or p = inf, leaves the bounds no choice."""
        return self.bounds == "trained" and self.rank > 1 and self.exponent > 0

    def wrap(self, base: nn.Linear) -> NBLoRALinear:
        return NBLoRALinear(base, self)

    def idle_knobs(self) -> dict[str, str]:
        idle = {}
        if not self.bounds_train:
            idle["temperature"] = "the bounds are all equal (bounds fixed, p inf or rank 1). Leave it out"
        if self.rank == 1:
            idle["p"] = "method.rank = 1 has one singular value, of which all norms are the same. Leave it out"
        return idle
