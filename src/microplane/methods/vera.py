"""VeRA, arXiv 2310.11454: h = W x + l_b * (B (l_d * (A dropout(x)))), with frozen random A, B that all layers share.

A (r, largest in) and B (largest out, r) come from a seed (Kaiming uniform); a layer takes the first columns of A and
the first rows of B. Only the vectors l_d (r,) and l_b (out,) train; l_d starts at 0.1, l_b at 0, so nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.methods import peft_format
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers, saved_sites
from microplane.methods.linear_method import LinearMethod
from microplane.methods.targets import target_sites
from microplane.nn.ops.dropout import dropout


class Projections(nn.Module):
    """The two random matrices, once for all layers; as peft makes them from the same seed."""

    A: Tensor  # (r, largest in)
    B: Tensor  # (largest out, r)

    def __init__(self, rank: int, in_features: int, out_features: int, seed: int, device: torch.device):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
            bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))  # in this order the bits are peft's too
            matrix = torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, matrix.to(device))


class VeRALinear(AdaptedLinear):
    def __init__(self, base: nn.Linear, shared: Projections, start: float, dropout: float):
        super().__init__(base)
        self.shared, self.dropout = shared, dropout
        rank, device = len(shared.A), self.device
        self.vera_lambda_d = nn.Parameter(torch.full((rank,), start, device=device))
        self.vera_lambda_b = nn.Parameter(torch.zeros(base.out_features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        A, B = (part.to(x.dtype) for part in self.projections())
        dropped = dropout(x, self.dropout, self.training)
        low = F.linear(dropped, A) * self.vera_lambda_d.to(x.dtype)  # (T, r)
        y: Tensor = self.base(x)
        return y + F.linear(low, B) * self.vera_lambda_b.to(x.dtype)

    def projections(self) -> tuple[Tensor, Tensor]:
        return self.shared.A[:, : self.in_features], self.shared.B[: self.out_features]

    def delta(self) -> Tensor:
        A, B = self.projections()
        return self.vera_lambda_b.unsqueeze(1) * (B @ (self.vera_lambda_d.unsqueeze(1) * A))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        A, B = self.projections()
        return self.vera_lambda_d.unsqueeze(1) * A, self.vera_lambda_b.unsqueeze(1) * B


class VeRA(LinearMethod):
    name: ClassVar[str] = "vera"
    summary: ClassVar[str] = "vectors around random matrices that all layers share; tiny files"
    default_lr: ClassVar[float] = 1e-2
    layer: ClassVar[type[AdaptedLinear]] = VeRALinear
    trains_matrices: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "VERA"

    rank: int = Field(256, ge=1, description="r, the rank of the random matrices")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the update's input, during training")
    lambda_d: float = Field(0.1, gt=0, description="what the inner vectors start at")
    seed: int = Field(0, ge=0, lt=2**63, description="of the random matrices")
    save_projections: bool = Field(
        True, description="save the random matrices too; without them the seed must give the same numbers elsewhere"
    )

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        sites = target_sites(model, self.targets)
        linears = [cast(nn.Linear, site.module) for site in sites.values()]
        largest_in, largest_out = max(x.in_features for x in linears), max(x.out_features for x in linears)
        device = next(model.parameters()).device
        shared = Projections(self.rank, largest_in, largest_out, self.seed, device)
        for site, linear in zip(sites.values(), linears, strict=True):
            site.replace(VeRALinear(linear, shared, self.lambda_d, self.dropout))

    def shared_state(self, model: nn.Module) -> dict[str, Tensor]:
        _, layer = next(adapted_layers(model, VeRALinear))
        return (
            {"base_model.vera_A": layer.shared.A, "base_model.vera_B": layer.shared.B} if self.save_projections else {}
        )

    def peft_config(self, model: nn.Module) -> dict[str, Any]:
        return {
            **peft_format.common_fields(self, model, (path for path, _ in saved_sites(model, VeRALinear))),
            "r": self.rank,
            "vera_dropout": self.dropout,
            "d_initial": self.lambda_d,
            "projection_prng_key": self.seed,
            "save_projection": self.save_projections,
            "bias": "none",
        }

    @classmethod
    def of_peft(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        peft_format.refuse_unsupported(config, peft_format.WHOLE)
        named = isinstance(config.get("target_modules"), list)  # else the names in the file decide
        return {
            "rank": config.get("r", 256),  # as peft where a file does not say, and so below
            "dropout": config.get("vera_dropout", 0.0),
            "targets": peft_format.roles_of(config) if named else ["all"],
            "lambda_d": config.get("d_initial", 0.1),
            "seed": config.get("projection_prng_key", 0),
            "save_projections": config.get("save_projection", True),
        }
