"""LoRA, arXiv 2106.09685: h = W x + s B A dropout(x), with A (r, in), B (out, r), s = alpha / r.

rsLoRA, arXiv 2312.03732, is the same with s = alpha / sqrt(r).
Start: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, as the authors' code), B zero, so nothing changes at first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.methods.kinds import AdaptedLinear, adapted, merge_linears, wrap_linears
from microplane.methods.method import Method, copy_strictly
from microplane.models.contract import hf_names
from microplane.nn.low_rank import low_rank_linear


class LoRALinear(AdaptedLinear):
    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__(base)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.dropout:
            low = F.linear(F.dropout(x, self.dropout), self.lora_A.to(x.dtype))
            return self.base(x) + F.linear(low, self.scale * self.lora_B.to(x.dtype))
        return low_rank_linear(x, self.base.weight, self.base.bias, self.lora_A, self.lora_B, self.scale)

    def delta(self) -> Tensor:
        return self.scale * (self.lora_B @ self.lora_A)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.scale * self.lora_B


class LoRA(Method):
    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "low-rank updates of linear layers; small files, merges exactly"
    default_lr: ClassVar[float] = 1e-3

    rank: int = Field(16, ge=1, description="r, the rank of the update")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the update's input, during training")
    targets: tuple[str, ...] = Field(("all",), description="roles of linear layers (q k v o gate up down head), or all")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead, arXiv 2312.03732")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def attach(self, model: nn.Module) -> None:
        wrap_linears(model, self.targets, lambda base: LoRALinear(base, self.rank, self.scale, self.dropout))

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The factors under the names that peft gives them."""
        names = hf_names(model)
        state: dict[str, Tensor] = {}
        for site, module in adapted(model, LoRALinear):
            prefix = "base_model.model." + names[f"{site}.weight"].removesuffix(".weight")
            state[f"{prefix}.lora_A.weight"] = module.lora_A
            state[f"{prefix}.lora_B.weight"] = module.lora_B
        return state

    def load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        copy_strictly(self.state(model), state)

    def merge(self, model: nn.Module) -> None:
        merge_linears(model)

    def peft_config(self, model: nn.Module) -> dict[str, Any]:
        names = hf_names(model)
        targets = sorted({names[f"{site}.weight"].split(".")[-2] for site, _ in adapted(model, LoRALinear)})
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "target_modules": targets,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
