"""LoRA (arXiv 2106.09685) whose rank grows while that pays: h = W x + s sum_i B_i A_i x, with s the same at every rank.

`method.rank = auto`. A scheme of our own, for which no paper is to be blamed:
- Each layer starts with a pair of rank 1 or 2. After each validation, while they improve, every layer gets a further
  pair, as large as what is there: rows of A random and orthogonal to the older ones, B zero. The function stays, bit
  for bit, as pairs are multiplied apart; older pairs keep their optimizer's state; the new ones' rate is warmed up.
- Growing ends at `max_rank`, near the end of the run, or after two ranks in a row at which too little was gained.
- At the end the best weights are taken, and each layer's pairs become one, by an exact SVD of the factors (QR of both,
  then of an r x r matrix), of the smallest rank that keeps `energy` of the squared singular values. Where validation
  suffers from that, only directions that are zero go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.methods import peft_format
from microplane.methods.adapted_linear import (
    AdaptedLinear,
    adapted_layers,
    drawn_rows,
    saved_rank,
    saved_sites,
    set_parameter_,
)
from microplane.methods.linear_method import LinearMethod
from microplane.methods.method import trainable


class Pair(nn.Module):
    """A (r, in) and B (out, r), and the step after which they came."""

    def __init__(self, A: Tensor, out_features: int, born: int = 0):
        super().__init__()
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(torch.zeros(out_features, len(A), device=A.device, dtype=A.dtype))
        self.born = born


class GrowingLinear(AdaptedLinear):
    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__(base)
        A = drawn_rows(rank, self.in_features, base.weight.device)
        self.pairs = nn.ModuleList([Pair(A, self.out_features)])
        self.scale, self.dropout = scale, dropout

    @property
    def parts(self) -> list[Pair]:
        return [cast(Pair, pair) for pair in self.pairs]

    @property
    def rank(self) -> int:
        return sum(len(pair.lora_A) for pair in self.parts)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.parts
        if self.training and self.dropout:  # one mask for all pairs
            A, B = self.factors()
            return self.forward_low_rank(x, A, B, self.scale, self.dropout)
        y = self.forward_low_rank(x, first.lora_A, first.lora_B, self.scale)
        for pair in others:
            y = y + F.linear(F.linear(x, pair.lora_A.to(x.dtype)), (self.scale * pair.lora_B).to(x.dtype))
        return y

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) of all pairs side by side, without the scale."""
        return torch.cat([pair.lora_A for pair in self.parts]), torch.cat([pair.lora_B for pair in self.parts], 1)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        A, B = self.factors()
        return A, self.scale * B

    def delta(self) -> Tensor:
        A, B = self.low_rank()
        return B @ A

    @torch.no_grad()
    def grow(self, rank: int, born: int, seed: int) -> None:
        """Add a pair of `rank` that changes nothing yet."""
        A = torch.cat([pair.lora_A for pair in self.parts])
        random = torch.randn(self.in_features, rank, generator=torch.Generator().manual_seed(seed), device="cpu").to(A)
        basis, _ = torch.linalg.qr(A.t())
        new, _ = torch.linalg.qr(random - basis @ (basis.t() @ random))
        norm = 1 / math.sqrt(3)  # what a row of A has at the start
        self.pairs.append(Pair((norm * new.t()).contiguous(), self.out_features, born))

    def saved(self) -> dict[str, Tensor]:
        """The first pair under the names that peft gives it; later ones with their number."""
        return {
            _name(letter, number): getattr(pair, f"lora_{letter}")
            for number, pair in enumerate(self.parts)
            for letter in "AB"
        }

    def saved_shapes(self, saved: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for number, rank in enumerate(self._ranks(saved)):
            shapes[_name("A", number)] = rank, self.in_features
            shapes[_name("B", number)] = self.out_features, rank
        return shapes

    def _ranks(self, saved: Mapping[str, Tensor]) -> list[int]:
        """Of the pairs that a file holds, which are numbered from 0."""
        count = 1
        while _name("A", count) in saved:
            count += 1
        return [saved_rank(saved.get(_name("A", number)), len(self.parts[0].lora_A)) for number in range(count)]

    def load_saved(self, saved: Mapping[str, Tensor]) -> None:
        self.reshape(self._ranks(saved))
        for end, parameter in self.saved().items():
            set_parameter_(cast(nn.Parameter, parameter), saved[end])

    def reshape(self, ranks: Sequence[int]) -> None:
        """Make room for pairs of these ranks; those that change get no values of use."""
        while len(self.pairs) > len(ranks):
            del self.pairs[-1]
        for number, rank in enumerate(ranks):
            if number == len(self.pairs):
                A = torch.zeros(rank, self.in_features, device=self.parts[0].lora_A.device)
                self.pairs.append(Pair(A, self.out_features))
            pair = self.parts[number]
            if len(pair.lora_A) != rank:
                set_parameter_(pair.lora_A, torch.zeros(rank, self.in_features))
                set_parameter_(pair.lora_B, torch.zeros(self.out_features, rank))


class GrowingLoRA(LinearMethod):
    name: ClassVar[str] = "lora-auto"
    summary: ClassVar[str] = "LoRA whose rank grows from 2 while validation improves; same as lora with rank = auto"
    default_lr: ClassVar[float] = 2e-3
    layer: ClassVar[type[AdaptedLinear]] = GrowingLinear
    takes_saved_ranks: ClassVar[bool] = True

    rank: Literal["auto"] = Field("auto", description="found during the run")
    start_rank: int = Field(2, ge=1, description="rank that every layer begins with; 1 or 2")
    max_rank: int = Field(64, ge=1, description="rank at which growing ends")
    scale: float = Field(2.0, gt=0, description="the update is scaled by this at every rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the update's input, during training")
    gain: float = Field(
        0.02, ge=0, description="share of the validation loss to be gained at a rank; twice less, and growing is over"
    )
    wait: int = Field(1, ge=1, description="validations at each rank")
    warmup: int = Field(20, ge=0, description="steps over which the rate of new pairs rises")
    energy: float = Field(0.99, gt=0, le=1, description="share of the squared singular values kept at the end")

    def wrap(self, base: nn.Linear) -> GrowingLinear:
        return GrowingLinear(base, self.start_rank, self.scale, self.dropout)

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """One for the pairs of each age, the oldest first; all else that trains is in the first."""
        pairs = [pair for _, module in adapted_layers(model, GrowingLinear) for pair in module.parts]
        born = {id(parameter): pair.born for pair in pairs for parameter in pair.parameters()}
        groups: dict[int, dict[str, Any]] = {}
        for parameter in trainable(model).values():
            age = born.get(id(parameter), 0)
            groups.setdefault(age, {"params": [], "lr": lr, "born": age})["params"].append(parameter)
        return [groups[age] for age in sorted(groups)]

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
        for group in optimizer.param_groups:
            age = step - group["born"]  # 0 in its first step
            if group["born"] and age < self.warmup:
                group["lr"] = group["lr"] * (age + 1) / self.warmup
        optimizer.step()

    def after_validation(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, history: Sequence[Mapping[str, Any]], total: int
    ) -> str | None:
        """Grow while validation improves; all that decides is in `history`."""
        modules = [module for _, module in adapted_layers(model, GrowingLinear)]
        step, rank = int(history[-1]["step"]), max(module.rank for module in modules)
        more = min(rank, self.max_rank - rank)
        # A layer's rank beyond its smaller side would be no other update.
        rooms = [min(more, module.in_features - module.rank, module.out_features - module.rank) for module in modules]
        if max(rooms) < 1 or total - step <= self.warmup or not grows(history, self.gain, self.wait):
            return None
        for number, (module, room) in enumerate(zip(modules, rooms, strict=True)):
            if room > 0:
                module.grow(room, step, seed=step * 1009 + number)
        peak = optimizer.param_groups[0]["peak_lr"]
        optimizer.add_param_group({**self.param_groups(model, peak)[-1], "peak_lr": peak})
        return f"rank {rank} -> {rank + max(rooms)}: rank {rank} gained {gains(history)[-1]:.1%} of the validation loss"

    def finish(self, model: nn.Module, validate: Callable[[], float]) -> str:
        modules = [module for _, module in adapted_layers(model, GrowingLinear)]
        grown, factors = max(module.rank for module in modules), [module.low_rank() for module in modules]
        before = validate()
        self._shrink(modules, factors, self.energy)
        after, kept = validate(), f"{self.energy:.1%} of the squared singular values"
        if not after <= before * (1 + self.gain / 2):
            self._shrink(modules, factors, 1.0)
            kept = "all that is not zero, as less cost too much"
        ranks = [module.rank for module in modules]
        return (
            f"best weights taken, rank {grown} cut to {min(ranks)}..{max(ranks)}, {sum(ranks) / len(ranks):.1f} on "
            f"average, which keeps {kept}"
        )

    def _shrink(self, modules: list[GrowingLinear], factors: list[tuple[Tensor, Tensor]], energy: float) -> None:
        for module, (A, B) in zip(modules, factors, strict=True):
            small_A, small_B = truncated(A, B, energy)
            module.reshape([len(small_A)])
            set_parameter_(module.parts[0].lora_A, small_A)
            set_parameter_(module.parts[0].lora_B, small_B / module.scale)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            f"{site}.born": torch.tensor([pair.born for pair in module.parts])
            for site, module in adapted_layers(model, GrowingLinear)
        }

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        for site, module in adapted_layers(model, GrowingLinear):
            for pair, born in zip(module.parts, state[f"{site}.born"].tolist(), strict=True):
                pair.born = born

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        """Once each layer has one pair it is a LoRA of peft's, with a rank for each layer."""
        sites = dict(saved_sites(model, GrowingLinear))
        if any(len(module.pairs) > 1 or not module.rank for module in sites.values()):
            return None
        ranks = {site: module.rank for site, module in sites.items()}
        return {
            **peft_format.common_fields(self, model, ranks),
            "peft_type": "LORA",
            "r": max(ranks.values()),
            "lora_alpha": self.scale * max(ranks.values()),
            "rank_pattern": ranks,
            "alpha_pattern": {site: self.scale * rank for site, rank in ranks.items()},
            "lora_dropout": self.dropout,
            "bias": "none",
        }


def gains(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """The share of the best validation loss so far that was gained at each rank; below 0 where nothing was."""
    losses = [float(check["validation_loss"]) for check in history]
    starts = [0, *(number for number, check in enumerate(history) if "decision" in check)]
    ends = [*(number + 1 for number in starts[1:]), len(losses)]
    best = [min(losses[: start + 1]) for start in starts]
    return [
        1 - min(losses[start + 1 : end], default=before) / before if before > 0 else 0.0
        for start, end, before in zip(starts, ends, best, strict=True)
    ]


def grows(history: Sequence[Mapping[str, Any]], gain: float, wait: int) -> bool:
    """Whether the present rank has had `wait` validations, and it or the one before gained a share `gain`."""
    grown = [number for number, check in enumerate(history) if "decision" in check]
    if len(history) - 1 - (grown[-1] if grown else 0) < wait:
        return False
    return not grown or max(gains(history)[-2:]) >= gain


def _name(letter: str, number: int) -> str:
    return f"lora_{letter}.weight" if number == 0 else f"lora_{letter}.{number}.weight"


@torch.no_grad()
def truncated(A: Tensor, B: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """(A (k, in), B (out, k)): the best approximation of B A by the smallest rank k that keeps `energy` of it.

    Exact (Eckart-Young) at the cost of an r x r SVD: with B = Q_B R_B and A^T = Q_A R_A it is that of R_B R_A^T.

    Args:
        energy: share of the sum of squared singular values; at 1, only what is zero but for rounding goes.
    """
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().t())
    U, S, Vh = torch.linalg.svd(R_B @ R_A.t(), full_matrices=False)
    rounding = float(S[0]) * max(A.shape[1], B.shape[0]) * torch.finfo(A.dtype).eps
    share = S.square().cumsum(0) / S.square().sum().clamp(min=torch.finfo(torch.double).tiny)
    k = min(int((share < energy).sum()) + 1, int((rounding < S).sum())) if energy < 1 else int((rounding < S).sum())
    k = max(1, k)
    root = S[:k].sqrt()
    return (root[:, None] * (Vh[:k] @ Q_A.t())).to(A), ((Q_B @ U[:, :k]) * root).to(B)
