"""The kind of method that selects: some of the model's own weights train, the others stay as they are."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from microplane.methods.method import PREFIX, Method
from microplane.models.contract import hf_names

NEEDS_BLOCK_ORDER = (
    "needs to know which blocks a model has and in which order, as Microplane's own are known. On this one take full, "
    "or lora, and name what trains beside it"
)


class Selecting(Method):
    """What trains are the parts that `chosen` names; what is saved are their weights, to be put over the base's."""

    trains: ClassVar[Literal["adapter", "vectors", "weights"]] = "weights"
    not_convertible: ClassVar[str | None] = "trains weights of the model's own, whatever they are; merge it instead"

    def chosen(self, model: nn.Module) -> list[nn.Module]:
        """The parts that train, besides a task head.

        Raises:
            ConfigError: if this model has none.
        """
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        for part in self.chosen(model):
            part.requires_grad_(True)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        own = {id(parameter) for part in self.chosen(model) for parameter in part.parameters()}
        names = hf_names(model)
        return {f"{PREFIX}{names[n]}": tensor for n, tensor in model.named_parameters() if id(tensor) in own}

    def merge(self, model: nn.Module) -> None:
        """Nothing to do: the weights are the model's own."""
        model.requires_grad_(False)
