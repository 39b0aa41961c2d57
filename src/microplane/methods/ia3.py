"""(IA)^3, arXiv 2205.05638: k and v are multiplied by vectors l_k, l_v, the feed-forward's inner activations by l_ff.

l_ff stands on the input of `down`, which is where peft has it: the same function as on the activations. All start at 1.
Merging is exact: rows of W (and the bias) times l, or columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from microplane.errors import ConfigError
from microplane.methods import peft_format
from microplane.methods.adapted_linear import AdaptedLinear, saved_sites
from microplane.methods.linear_method import LinearMethod
from microplane.methods.method import trainable
from microplane.methods.targets import target_sites


class IA3Linear(AdaptedLinear):
    """A linear layer whose output is scaled, or its input."""

    def __init__(self, base: nn.Linear, on_input: bool):
        super().__init__(base)
        self.on_input = on_input
        shape = (1, base.in_features) if on_input else (base.out_features, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape, device=self.device))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.ia3_l.flatten().to(x.dtype)
        y: Tensor = self.base(x * scale) if self.on_input else self.base(x) * scale
        return y

    def delta(self) -> Tensor:
        return self.base.weight.to(self.ia3_l.dtype) * (self.ia3_l - 1)

    def merged(self) -> nn.Linear:
        plain = super().merged()
        if plain.bias is not None and not self.on_input:
            bias = plain.bias * self.ia3_l.flatten()
            plain.bias = nn.Parameter(bias.to(plain.bias.dtype), requires_grad=False)
        return plain


class IA3(LinearMethod):
    name: ClassVar[str] = "ia3"
    summary: ClassVar[str] = "scales keys, values and inner activations by vectors; the smallest files"
    default_lr: ClassVar[float] = 2e-2
    layer: ClassVar[type[AdaptedLinear]] = IA3Linear
    trains_matrices: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "IA3"
    not_convertible: ClassVar[str | None] = "multiplies whole rows and columns, a change of full rank; merge it instead"

    targets: tuple[str, ...] = Field(("k", "v"), description="roles of linear layers whose output is scaled")
    feedforward: tuple[str, ...] = Field(("down",), description="roles of linear layers whose input is scaled")

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        outputs = target_sites(model, self.targets) if self.targets else {}
        inputs = target_sites(model, self.feedforward, "feedforward") if self.feedforward else {}
        if not outputs and not inputs:
            raise ConfigError("method.targets and method.feedforward are both empty: nothing would train")
        if both := sorted(outputs.keys() & inputs.keys()):
            raise ConfigError(
                f"method.feedforward = {inputs[both[0]].role!r} stands in method.targets too; a layer takes one vector"
            )
        for sites, on_input in ((outputs, False), (inputs, True)):
            for site in sites.values():
                site.replace(IA3Linear(site.module, on_input))  # type: ignore[arg-type]

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Without weight decay, which would pull the vectors to 0 and not to 1."""
        return [{"params": list(trainable(model).values()), "lr": lr, "weight_decay": 0.0}]

    def peft_config(self, model: nn.Module) -> dict[str, Any]:
        layers = dict(saved_sites(model, IA3Linear))
        inputs = peft_format.shortest(model, [path for path, layer in layers.items() if layer.on_input])
        outputs = peft_format.shortest(model, [path for path, layer in layers.items() if not layer.on_input])
        fields = peft_format.common_fields(self, model, layers)
        return {**fields, "target_modules": sorted({*inputs, *outputs}), "feedforward_modules": inputs}

    @classmethod
    def of_peft(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        peft_format.refuse_unsupported(config, peft_format.WHOLE)
        names = "target_modules", "feedforward_modules"
        if any(isinstance(config.get(name), str) for name in names):  # a pattern: the file tells the layers
            return {"targets": [], "feedforward": []}
        inputs = peft_format.roles_of(config, "feedforward_modules") if config.get("feedforward_modules") else []
        targets = [role for role in peft_format.roles_of(config) if role not in inputs]
        return {"targets": targets, "feedforward": inputs}

    @property
    def named(self) -> tuple[str, ...]:
        return self.targets + self.feedforward

    def on(self, layers: Mapping[str, Tensor]) -> Self:
        """The vector's shape tells what it multiplies."""
        inputs = {name for name, vector in layers.items() if len(vector) == 1}
        targets = tuple(sorted(layers.keys() - inputs))
        return self.model_copy(update={"targets": targets, "feedforward": tuple(sorted(inputs))})
