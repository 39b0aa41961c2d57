"""rsLoRA, arXiv 2312.03732: LoRA with s = alpha / sqrt(r), so that updates do not shrink as the rank grows."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field

from microplane.methods.lora import LoRA


class RsLoRA(LoRA):
    name: ClassVar[str] = "rslora"
    summary: ClassVar[str] = "LoRA scaled by alpha / sqrt(rank); for ranks above 32"
    default_lr: ClassVar[float] = 1e-3
    peft_flags: ClassVar[dict[str, bool]] = {"use_rslora": True, "use_dora": False}

    rank: int = Field(64, ge=1, description="r, the rank of the update")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / sqrt(rank)")

    @staticmethod
    def scale_of(rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank)

    @classmethod
    def at_rank(cls, rank: int) -> dict[str, Any]:
        return {"rank": rank}  # the scale is made for every rank

    def alpha_of(self, rank: int) -> float:
        return self.alpha if rank == self.rank else self.scale * math.sqrt(rank)
