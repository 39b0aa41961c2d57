"""The base of the methods that adapt linear layers: which ones, and how they are wrapped, saved, loaded and merged.

What a layer saves is said by the layer itself (`AdaptedLinear.saved` and its two companions), and where it is saved by
`saved_sites`: under the layer's dotted name in Hugging Face's model, as peft has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, cast

from pydantic import Field
from torch import Tensor, nn

from microplane.methods.adapted_linear import AdaptedLinear, merge_linears, saved_sites
from microplane.methods.method import PREFIX, Method, check_fits, copy_strictly
from microplane.methods.targets import target_sites


class LinearMethod(Method):
    """A method whose trained tensors all lie in adapted linear layers. A new one gives `layer` and `wrap`."""

    layer: ClassVar[type[AdaptedLinear]]
    takes_saved_ranks: ClassVar[bool] = False  # a layer takes the rank that it was saved with; else only the knobs'

    targets: tuple[str, ...] = Field(("all",), description="roles of linear layers (q k v o gate up down head), or all")

    @property
    def named(self) -> tuple[str, ...]:
        return self.targets

    def on(self, layers: Mapping[str, Tensor]) -> Self:
        return self.model_copy(update={"targets": tuple(sorted(layers))})

    def wrap(self, base: nn.Linear) -> AdaptedLinear:
        """The adapted layer that takes the place of `base`, which is frozen (and may be quantised, nn/quantised.py).

        Raises:
            ConfigError: if this layer cannot be adapted with the method's knobs, a rank too large for one.
        """
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        """Freeze `model` and replace the linear layers that `targets` names.

        Raises:
            ConfigError: for a target that this model does not have, with those that it has.
        """
        model.requires_grad_(False)
        for site in target_sites(model, self.targets).values():
            site.replace(self.wrap(cast(nn.Linear, site.module)))

    def shared_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What is saved once and not layer by layer, by its whole name in the file."""
        return {}

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The layers' tensors under the names that peft gives them, where it has the method."""
        own = {
            f"{PREFIX}{path}.{end}": tensor
            for path, layer in saved_sites(model, self.layer)
            for end, tensor in layer.saved().items()
        }
        return own | self.shared_state(model)

    def load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        layers = {f"{PREFIX}{path}.": layer for path, layer in saved_sites(model, self.layer)}
        shared = self.shared_state(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in shared.items()}
        for prefix, layer in layers.items():
            known = _below(prefix, state) if self.takes_saved_ranks else {}
            shapes |= {f"{prefix}{end}": shape for end, shape in layer.saved_shapes(known).items()}
        check_fits(shapes, state)
        copy_strictly(shared, {name: state[name] for name in shared})
        for prefix, layer in layers.items():
            layer.load_saved(_below(prefix, state))

    def merge(self, model: nn.Module) -> None:
        merge_linears(model)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
