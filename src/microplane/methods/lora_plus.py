"""LoRA+, arXiv 2402.12354: LoRA with the rate lr for A and ratio * lr for B.

B is the factor on the output side, which starts at zero; it is found by asking the adapted layers. As in the authors'
code, other trainable vectors (biases, norms) take the high rate too, and everything else the low one. Weight decay
applies to both factors there and here; peft's helper drops it unless it is given under another name.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers
from microplane.methods.lora import LoRA
from microplane.methods.method import trainable


class LoRAPlus(LoRA):
    name: ClassVar[str] = "lora+"
    summary: ClassVar[str] = "LoRA with a higher learning rate for B; the same files"
    default_lr: ClassVar[float] = 5e-4

    ratio: float = Field(16.0, ge=1, description="the learning rate of B over that of A")

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        outputs = {
            id(factor) for _, module in adapted_layers(model, AdaptedLinear) for factor in module.output_factors()
        }
        slow: list[nn.Parameter] = []
        fast: list[nn.Parameter] = []
        for parameter in trainable(model).values():
            (fast if id(parameter) in outputs or parameter.dim() == 1 else slow).append(parameter)
        return [{"params": slow, "lr": lr}, {"params": fast, "lr": lr * self.ratio}]
