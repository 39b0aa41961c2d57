"""AdaLoRA, arXiv 2303.10512: h = W x + s P diag(E) Q x, with directions pruned by importance under a falling budget.

lora_A = Q (r, in), lora_E = E (r, 1), lora_B = P (out, r), s = alpha / (initial rank + 1e-5) throughout.
Start: E = 0; P and Q normal with deviation 0.02. P and Q are held near orthonormal by a penalty.

Where the paper and the authors' code (and peft) differ, the code is followed:
- The penalty is the mean over all P and Q of the Frobenius norm of P^T P - I and Q Q^T - I, not squared as in the
  paper; a value of `orthogonality` means something else in the other form.
- The budget falls as (1 - (t - warm) / (T - final - warm))^3 from all directions to `rank` a layer. The paper prints
  (t - warm - final) in the numerator: that exceeds the budget's start just after `warm` and jumps at T - final.

Importance, after each optimizer step: I = |w dL/dw|, averaged over time; U = its average deviation; a weight scores
I U, a direction its E's score and the means of its row of Q and column of P. Every `interval` steps the lowest are
set to E = 0; a direction may come back until the final phase begins, from when on the choice stands.

The schedule counts on the run's length. So a run stops early only in the final phase, and only weights of that phase
count as the best (docs/decisions/0006); a resume with another length is refused. At the end pruned directions are
removed from the best weights: the saved adapter is smaller, each layer with a rank of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from microplane.device import drawn
from microplane.errors import TrainingError
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers, saved_rank, set_parameter_
from microplane.methods.init.low_rank_method import LowRankMethod

TENSORS = ("lora_A", "lora_E", "lora_B")


def _small(rows: int, columns: int, device: torch.device) -> Tensor:
    return drawn(lambda matrix: matrix.normal_(0, 0.02), rows, columns, device=device)


class AdaLoRALinear(AdaptedLinear):
    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__(base)
        device = base.weight.device
        self.lora_A = nn.Parameter(_small(rank, self.in_features, device))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, device=device))
        self.lora_B = nn.Parameter(_small(self.out_features, rank, device))
        self.scale, self.dropout = scale, dropout
        self.averages: dict[str, tuple[Tensor, Tensor]] = {}  # of each tensor: (sensitivity, uncertainty)
        self.kept: Tensor | None = None  # (r) the directions of the last choice
        self.total = 0  # steps of the run that the schedule was begun with

    def forward(self, x: Tensor) -> Tensor:
        Q = self.lora_A * self.lora_E
        return self.forward_low_rank(x, Q, self.lora_B, self.scale, self.dropout)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.lora_A * self.lora_E, self.scale * self.lora_B

    def delta(self) -> Tensor:
        return self.scale * (self.lora_B @ (self.lora_A * self.lora_E))

    @torch.no_grad()
    def set_factors(self, A: Tensor, B: Tensor, relative_to_start: bool) -> None:
        """Train from the directions of a pair, of length 1. E is their size, or 0 where the pair is no change.

        P stays random where B is zero.
        """
        width, height = A.norm(dim=1), B.norm(dim=0)  # (r)
        if len(A) != len(self.lora_E):
            set_parameter_(self.lora_B, _small(self.out_features, len(A), A.device))
        set_parameter_(self.lora_A, A / width[:, None])
        if height.all():
            set_parameter_(self.lora_B, B / height)
        set_parameter_(self.lora_E, A.new_zeros(len(A), 1) if relative_to_start else (width * height)[:, None])

    def saved_shapes(self, saved: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        rank = saved_rank(saved.get("lora_A"), len(self.lora_A))
        return {"lora_A": (rank, self.in_features), "lora_E": (rank, 1), "lora_B": (self.out_features, rank)}

    def load_saved(self, saved: Mapping[str, Tensor]) -> None:
        for name in TENSORS:
            set_parameter_(self.get_parameter(name), saved[name])

    @torch.no_grad()
    def observe(self, beta1: float, beta2: float) -> None:
        """Average the importance of each weight; needs the gradients of the step just made."""
        for name in TENSORS:
            parameter = self.get_parameter(name)
            assert parameter.grad is not None
            importance = (parameter * parameter.grad).abs()
            zero = torch.zeros_like(importance)
            sensitivity, uncertainty = self.averages.get(name, (zero, zero))
            sensitivity = beta1 * sensitivity + (1 - beta1) * importance
            uncertainty = beta2 * uncertainty + (1 - beta2) * (importance - sensitivity).abs()
            self.averages[name] = sensitivity, uncertainty

    def scores(self) -> Tensor:
        """The importance of each direction, (r)."""
        A, E, B = (sensitivity * uncertainty for sensitivity, uncertainty in map(self.averages.__getitem__, TENSORS))
        return E.view(-1) + (A.mean(1) + B.mean(0))


@dataclass(frozen=True)
class Schedule:
    """How many directions may be in use after step t (from 1) of `total`."""

    start: int  # directions of all layers
    end: int
    warm: int  # steps before the first is pruned
    final: int  # steps after the choice stands
    total: int

    @property
    def settles(self) -> int:
        return self.total - self.final

    def budget(self, t: int) -> int:
        if t <= self.warm:
            return self.start
        if t > self.settles:
            return self.end
        left = 1 - (t - self.warm) / (self.settles - self.warm)
        return int((self.start - self.end) * left**3 + self.end)


class AdaLoRA(LowRankMethod):
    name: ClassVar[str] = "adalora"
    summary: ClassVar[str] = "low-rank updates that give each layer the rank it earns, under a budget"
    default_lr: ClassVar[float] = 1.5e-2
    takes_saved_ranks: ClassVar[bool] = True
    layer: ClassVar[type[AdaptedLinear]] = AdaLoRALinear
    first_rank_knob: ClassVar[str] = "initial_rank"

    rank: int = Field(16, ge=1, description="directions a layer has at the end, on average")
    initial_rank: int = Field(24, ge=1, description="directions each layer begins with; 1.5 times the rank is usual")
    alpha: float = Field(64.0, gt=0, description="the update is scaled by alpha / initial_rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the update's input, during training")
    orthogonality: float = Field(0.1, ge=0, description="weight of the penalty that keeps directions apart")
    warm_share: float = Field(0.1, ge=0, lt=1, description="share of the steps before anything is pruned")
    final_share: float = Field(0.5, ge=0, lt=1, description="share of the steps that train the chosen directions only")
    interval: int = Field(10, ge=1, description="steps between two choices")
    beta1: float = Field(0.85, gt=0, lt=1, description="averaging of the importance")
    beta2: float = Field(0.85, gt=0, lt=1, description="averaging of its deviation")

    @model_validator(mode="after")
    def _bounds(self) -> AdaLoRA:
        if self.initial_rank < self.rank:
            raise ValueError(f"initial_rank = {self.initial_rank} must be at least rank = {self.rank}")
        if self.warm_share + self.final_share >= 1:
            raise ValueError("warm_share + final_share must be below 1, to leave steps in which to prune")
        return self

    @classmethod
    def at_rank(cls, rank: int) -> dict[str, Any]:
        return super().at_rank(rank) | {"initial_rank": -(-rank * 3 // 2)}

    def idle_knobs(self) -> dict[str, str]:
        if self.initial_rank > self.rank:
            return super().idle_knobs()
        why = f"method.initial_rank = method.rank = {self.rank}, so nothing is pruned. Set initial_rank higher"
        return super().idle_knobs() | dict.fromkeys(("interval", "beta1", "beta2"), why)

    def wrap(self, base: nn.Linear) -> AdaLoRALinear:
        scale = self.alpha / (self.initial_rank + 1e-5)
        return AdaLoRALinear(base, self.initial_rank, scale, self.dropout)

    def schedule(self, layers: int, total: int) -> Schedule:
        warm, final = int(self.warm_share * total), int(self.final_share * total)
        return Schedule(self.initial_rank * layers, self.rank * layers, warm, final, total)

    def can_be_result(self, step: int, total: int) -> bool:
        return step >= self.schedule(1, total).settles

    def penalty(self, model: nn.Module) -> Tensor | float:
        norms = []
        for _, module in adapted_layers(model, AdaLoRALinear):
            for gram in (module.lora_A @ module.lora_A.t(), module.lora_B.t() @ module.lora_B):
                norms.append(torch.linalg.norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)))
        return self.orthogonality * torch.stack(norms).mean() if self.orthogonality else 0.0

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
        modules = [module for _, module in adapted_layers(model, AdaLoRALinear)]
        schedule = self.schedule(len(modules), total)
        self._check_total(modules, schedule)
        optimizer.step()
        t = step + 1
        if t < schedule.settles:
            for module in modules:
                module.observe(self.beta1, self.beta2)
        if t > schedule.settles:
            for module in modules:
                assert module.kept is not None
                module.lora_E.data.masked_fill_(~module.kept[:, None], 0)
        elif t == schedule.settles or (t > schedule.warm and t % self.interval == 0):
            kept = choose([module.scores() for module in modules], schedule.budget(t))
            for module, mask in zip(modules, kept, strict=True):
                module.lora_E.data.masked_fill_(~mask[:, None], 0)
                module.kept = mask
                if t == schedule.settles:
                    module.averages = {}

    def _check_total(self, modules: list[AdaLoRALinear], schedule: Schedule) -> None:
        if schedule.settles < 2:
            raise TrainingError(
                f"adalora has no step in which to find out what matters: the run has {schedule.total}, of which the "
                f"last {schedule.final} train what was chosen. Train longer, or lower method.final_share"
            )
        for module in modules:
            if module.total not in (0, schedule.total):
                raise TrainingError(
                    f"adalora's schedule was begun for {module.total} steps and cannot go on for {schedule.total}: "
                    "what was pruned by now depends on it. Put train.steps and train.epochs back, or start anew"
                )
            module.total = schedule.total

    def finish(self, model: nn.Module, validate: Callable[[], float]) -> str:
        """Remove the directions that are zero."""
        ranks, removed = [], 0
        for _, module in adapted_layers(model, AdaLoRALinear):
            used = module.lora_E.detach().view(-1) != 0
            removed += int((~used).sum())
            A, E, B = module.lora_A.detach(), module.lora_E.detach(), module.lora_B.detach()
            for parameter, value in ((module.lora_A, A[used]), (module.lora_E, E[used]), (module.lora_B, B[:, used])):
                set_parameter_(parameter, value)
            ranks.append(len(module.lora_E))
        return (
            f"removed {removed} of {removed + sum(ranks)} directions; ranks from {min(ranks)} to {max(ranks)}, "
            f"{sum(ranks) / len(ranks):.1f} on average"
        )

    def may_not_move(self, model: nn.Module) -> set[str]:
        """A layer that lost all its directions has E = 0, as it began, and no gradient for the rest."""
        lost = [site for site, m in adapted_layers(model, AdaLoRALinear) if m.kept is not None and not m.kept.any()]
        return {f"{site}.{name}" for site in lost for name in TENSORS}

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        state = {}
        for site, module in adapted_layers(model, AdaLoRALinear):
            state[f"{site}.total"] = torch.tensor(module.total)
            if module.kept is not None:
                state[f"{site}.kept"] = module.kept
            for name, (sensitivity, uncertainty) in module.averages.items():
                state |= {f"{site}.{name}.sensitivity": sensitivity, f"{site}.{name}.uncertainty": uncertainty}
        return state

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        for site, module in adapted_layers(model, AdaLoRALinear):
            module.total = int(state[f"{site}.total"])
            module.kept = state.get(f"{site}.kept")
            module.averages = {
                name: (state[f"{site}.{name}.sensitivity"], state[f"{site}.{name}.uncertainty"])
                for name in TENSORS
                if f"{site}.{name}.sensitivity" in state
            }


@torch.no_grad()
def choose(scores: list[Tensor], budget: int) -> list[Tensor]:
    """For each layer which of its directions stay, (r): those that score above the lowest (all - budget)."""
    every = torch.cat(scores)
    if budget >= len(every):
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    threshold = every.kthvalue(len(every) - budget).values
    return [score > threshold for score in scores]
