"""Full fine-tuning: every weight of the model trains.

The reference that the other methods are measured against. Weights are kept in float32: in bfloat16 an update smaller
than 1/256 of a weight would vanish.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from microplane.methods.method import Method
from microplane.models.contract import hf_names


class Full(Method):
    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "every weight trains; the most memory, the largest files"
    default_lr: ClassVar[float] = 2e-4
    trains: ClassVar[Literal["adapter", "vectors", "weights"]] = "weights"
    whole_model: ClassVar[bool] = True

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(True)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        names = hf_names(model)
        tensors = (*model.named_parameters(), *model.named_buffers())  # Marian's head has a bias that does not train
        return {names[name]: tensor for name, tensor in tensors if name in names}

    def merge(self, model: nn.Module) -> None:
        """Nothing to do: the weights are the model's own."""
        model.requires_grad_(False)
