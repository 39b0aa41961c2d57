"""LoRA-FA, arXiv 2308.03303: LoRA whose A stays as it was drawn; h = W x + s B A x, and only B (out, r) trains.

So a layer's inputs need not be kept for the backward pass, only the r numbers A x of each token.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from microplane.methods.lora import LoRA, LoRALinear


class LoRAFA(LoRA):
    name: ClassVar[str] = "lora-fa"
    summary: ClassVar[str] = "LoRA that trains B alone: fewer activations and half the optimizer state; the same files"
    default_lr: ClassVar[float] = 4e-3

    def wrap(self, base: nn.Linear) -> LoRALinear:
        layer = super().wrap(base)
        layer.lora_A.requires_grad_(False)
        return layer
