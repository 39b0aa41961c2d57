"""ScaLoRA, arXiv 2510.23818: LoRA whose factors are rescaled before a step, W taking up the difference exactly.

    h = (W + D) x + s B A x;   B' = B diag(alpha), A' = diag(beta) A, D' = D + s (B A - B' A')

The function stays, but the next step works on other factors, so the sum of all steps outgrows rank r. alpha and beta
bring a gradient step on (A', B') as near as they can to a full one (`scaling`: column by column, or one number each
where that has no solution). What is learned from gradients follows the chain rule *across*: dL/dB' = dL/dB diag(beta)
and dL/dA' = diag(alpha) dL/dA, so B's gradient and moments scale by beta and A's by alpha. (Notes on the paper leave
open whose factor is meant; its first author's code of a sibling method does the same as here.)

Only L eta, of the smoothness L and the step size eta, enters: the wanted inverse square norm of a column. So that is
the knob, `column_norm` = 1 / sqrt(L eta s^2). At 0.577, the norm that rows of A start with, A keeps its size.
Start: as LoRA. While a factor is zero nothing is scaled. The paper's settings for the first step and L are not known.

W + D is held besides W and D, in float32: D is summed apart, so that W's rounding does not enter it. At the end D and
s B A become one change, kept as factors of its numerical rank where these are smaller than the full matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from microplane.device import CPU, put
from microplane.errors import ConfigError, TrainingError
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers, saved_rank, set_parameter_
from microplane.methods.init.low_rank_method import LowRankMethod
from microplane.nn.ops.low_rank import low_rank_linear

PLAIN = "changes the base by exact merges, whose small steps would vanish in fewer bits than float32 has"


class ScaLoRALinear(AdaptedLinear):
    weight: Tensor  # W + D
    drift: Tensor | None  # D, what merges have changed so far

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__(base)
        plain = isinstance(base, nn.Linear)
        if not plain or base.weight.dtype not in (torch.float32, torch.float64):
            kind = str(base.weight.dtype).removeprefix("torch.") if plain else type(base).__name__
            raise ConfigError(f"model.dtype: the method scalora {PLAIN}; the base is {kind}. Set model.dtype=float32")
        device, dtype = base.weight.device, base.weight.dtype
        A = torch.empty(rank, self.in_features, dtype=dtype, device=device if device.type == "meta" else CPU)
        self.lora_A = nn.Parameter(put(nn.init.kaiming_uniform_(A, a=math.sqrt(5)), device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device, dtype=dtype))
        self.scale = scale
        self.register_buffer("drift", None, persistent=False)
        self.register_buffer("weight", base.weight.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return low_rank_linear(x, self.weight, self.base.bias, self.lora_A, self.lora_B, self.scale)

    def delta(self) -> Tensor:
        pair = self.scale * (self.lora_B @ self.lora_A)
        return pair if self.drift is None else self.drift + pair

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        return (self.lora_A, self.scale * self.lora_B) if self.drift is None else None

    @torch.no_grad()
    def set_drift(self, drift: Tensor | None) -> None:
        self.drift = drift
        self.weight = self.base.weight.detach() if drift is None else self.base.weight + drift

    @torch.no_grad()
    def set_factors(self, A: Tensor, B: Tensor, relative_to_start: bool) -> None:
        """Train from the pair (A, B), of any rank; where it is counted from, the base has it taken off."""
        set_parameter_(self.lora_A, A)
        set_parameter_(self.lora_B, B)
        self.set_drift(-self.scale * (self.lora_B @ self.lora_A) if relative_to_start else None)

    def saved(self) -> dict[str, Tensor]:
        pair: dict[str, Tensor] = {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}
        return pair if self.drift is None else {**pair, "drift": self.drift}

    def saved_shapes(self, saved: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        rank = saved_rank(saved.get("lora_A.weight"), len(self.lora_A))
        shapes: dict[str, tuple[int, ...]] = {
            "lora_A.weight": (rank, self.in_features),
            "lora_B.weight": (self.out_features, rank),
        }
        return shapes | ({"drift": (self.out_features, self.in_features)} if "drift" in saved else {})

    def load_saved(self, saved: Mapping[str, Tensor]) -> None:
        set_parameter_(self.lora_A, saved["lora_A.weight"])
        set_parameter_(self.lora_B, saved["lora_B.weight"])
        drift = saved.get("drift")
        self.set_drift(None if drift is None else drift.to(self.base.weight))

    @torch.no_grad()
    def rescale(self, alpha: Tensor, beta: Tensor) -> None:
        """Scale the columns of B by alpha and the rows of A by beta, (r) each; the base takes up the difference."""
        change = self.scale * (self.lora_B * (1 - alpha * beta)) @ self.lora_A
        self.lora_B.mul_(alpha)
        self.lora_A.mul_(beta[:, None])
        self.set_drift(change if self.drift is None else self.drift + change)


class ScaLoRA(LowRankMethod):
    name: ClassVar[str] = "scalora"
    summary: ClassVar[str] = "low-rank steps whose sum reaches a high rank; float32 base, more memory"
    default_lr: ClassVar[float] = 3e-3
    takes_saved_ranks: ClassVar[bool] = True
    layer: ClassVar[type[AdaptedLinear]] = ScaLoRALinear
    optimizers: ClassVar[tuple[str, ...] | None] = ("adamw",)  # whose moments it knows how to rescale
    needs_float32: ClassVar[str | None] = PLAIN

    rank: int = Field(16, ge=1, description="r, the rank of a single step's update")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank")
    interval: int = Field(10, ge=1, description="steps between two rescalings; 1 is the paper's first form, and slow")
    column_norm: float = Field(0.577, gt=0, description="norm that columns are brought to, 1 / sqrt(L eta s^2)")
    dropout: float = Field(0.0, description="must be 0: it would act on the pair, but not on what is merged")

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, dropout: float) -> float:
        if dropout:
            raise ValueError("must be 0: dropout acts on the pair, but not on what is merged into the base")
        return dropout

    def wrap(self, base: nn.Linear) -> ScaLoRALinear:
        return ScaLoRALinear(base, self.rank, self.alpha / self.rank)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
        if step % self.interval == 0:
            for _, module in adapted_layers(model, ScaLoRALinear):
                self._rescale(module, optimizer)
        optimizer.step()

    @torch.no_grad()
    def _rescale(self, module: ScaLoRALinear, optimizer: torch.optim.Optimizer) -> None:
        A, B = module.lora_A, module.lora_B
        if A.grad is None or B.grad is None or not (A.any() and B.any()):
            return
        # The gradients carry the scale s, and clipping's factor: a common factor of G does not change the solution.
        found = scaling(B, A.t(), B.grad, A.grad.t(), self.column_norm**-2)
        if found is None:
            return
        alpha, beta = (factor.to(A.dtype) for factor in found)
        module.rescale(alpha, beta)
        for parameter, factor in ((B, beta), (A, alpha[:, None])):  # across: what it was multiplied with has changed
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
            scale_moments(optimizer, parameter, factor)

    def finish(self, model: nn.Module, validate: Callable[[], float]) -> str:
        """Write each layer's whole change as factors of its numerical rank, or in full where that is smaller."""
        ranks, full = [], 0
        for _, module in adapted_layers(model, ScaLoRALinear):
            change = module.delta().detach()
            A, B = numerical_factors(change)
            ranks.append(len(A))
            smaller = len(A) * (module.in_features + module.out_features) < change.numel()
            full += not smaller
            set_parameter_(module.lora_A, A if smaller else A[:0])
            set_parameter_(module.lora_B, B / module.scale if smaller else B[:, :0])
            module.set_drift(None if smaller else change)
        mean = sum(ranks) / len(ranks)
        return (
            f"the change has numerical rank {min(ranks)} to {max(ranks)}, {mean:.1f} on average, from steps of rank "
            f"{self.rank}; kept in full in {full} of {len(ranks)} layers, as factors in the others"
        )


def scaling(A: Tensor, B: Tensor, D_A: Tensor, D_B: Tensor, L_eta: float) -> tuple[Tensor, Tensor] | None:
    """(alpha, beta), r each and float64, that bring a step on (A diag(alpha), B diag(beta)) nearest to a full one.

    In the paper's terms, W + A B^T with A (m, r) and B (n, r): minimises |G / L - eta (G B' B'^T + A' A'^T G)|^2.
    By columns (Theorem 3.7) if that has a solution, else by one number for each factor (Theorem 3.5, rederived).

    Args:
        D_A, D_B: G B (m, r) and G^T A (n, r), the gradients by A and B.
    """
    A, B, D_A, D_B = (matrix.double() for matrix in (A, B, D_A, D_B))
    rank = A.shape[1]
    M = _gram(torch.cat([A, D_A], 1)) * _gram(torch.cat([D_B, B], 1))  # (2r, 2r)
    wanted = torch.cat([D_B.square().sum(0), D_A.square().sum(0)])
    squares, info = torch.linalg.solve_ex(M, wanted)
    if info or not squares.isfinite().all() or squares.min() < 0:
        two = _scalars(A, B, D_A, D_B)
        if two is None:
            return None
        squares = put(torch.tensor(two, dtype=A.dtype), A.device).repeat_interleave(rank)
    alpha, beta = (squares / L_eta).sqrt().split(rank)
    return alpha, beta


def _scalars(A: Tensor, B: Tensor, D_A: Tensor, D_B: Tensor) -> tuple[float, float] | None:
    """(alpha^2, beta^2) L eta of the best pair of numbers, none below 0; None where the gradients are zero."""
    p, q = float((_gram(A) * _gram(D_B)).sum()), float((_gram(B) * _gram(D_A)).sum())
    a, b, c = float(D_B.square().sum()), float(D_A.square().sum()), float((A.t() @ D_A).square().sum())
    if not (p > 0 and q > 0 and math.isfinite(p + q)):
        return None
    det = p * q - c * c
    alpha2, beta2 = (q * a - c * b, p * b - c * a) if det > 0 else (0.0, 0.0)
    if alpha2 < 0:
        return 0.0, b / q
    if beta2 < 0:
        return a / p, 0.0
    return (alpha2 / det, beta2 / det) if det > 0 else None


def _gram(matrix: Tensor) -> Tensor:
    return matrix.t() @ matrix


def scale_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, factor: Tensor) -> None:
    """Make Adam's averages those of gradients that had always been `factor` times as large.

    Raises:
        TrainingError: for an optimizer with other averages.
    """
    powers = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
    for key, value in optimizer.state.get(parameter, {}).items():
        if key in powers:
            value.mul_(factor ** powers[key])
        elif key != "step":
            raise TrainingError(f"scalora cannot rescale {key!r} of this optimizer; set train.optimizer=adamw")


@torch.no_grad()
def numerical_factors(change: Tensor) -> tuple[Tensor, Tensor]:
    """(A (k, in), B (out, k)) with B A = change; k counts the singular values above the rounding of the largest."""
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    k = int((S[0] * max(change.shape) * torch.finfo(change.dtype).eps < S).sum()) if len(S) else 0
    root = S[:k].sqrt()
    return root[:, None] * Vh[:k], U[:, :k] * root
