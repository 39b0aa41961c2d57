"""The kind of method that reparameterises a frozen linear layer.

One law, tested for every member: in eval mode `forward(x) == merged()(x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.errors import AdapterError
from microplane.methods.method import PREFIX
from microplane.methods.targets import target_sites
from microplane.models.contract import hf_names, linears
from microplane.nn.ops.low_rank import low_rank_linear
from microplane.nn.quantised import QuantisedLinear
from microplane.nn.transposed import TransposedLinear

__all__ = [
    "AdaptedLinear",
    "adapted_layers",
    "merge_linears",
    "saved_sites",
    "set_parameter_",
    "target_sites",
    "wrap_linears",
]


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus something small that trains. The base may be quantised, nn/quantised.py."""

    def __init__(self, base: nn.Linear | QuantisedLinear):
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features

    def __getattr__(self, name: str) -> Any:
        """A model that multiplies by the weight itself would pass by what was added: better an error than that."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name != "weight":
                raise
            what = "the model reads the weight of an adapted linear layer itself, so that the adapter would be ignored"
            raise AttributeError(f"{what}: leave that layer out of method.targets") from None

    @property
    def device(self) -> torch.device:
        return next(chain(self.base.parameters(), self.base.buffers())).device

    def delta(self) -> Tensor:
        """The change to the base's weight, (out, in), float32."""
        raise NotImplementedError

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """(A, B) with delta() = B A exactly, A (r, in) and B (out, r); None where the change has no such form."""
        return None

    def output_factors(self) -> tuple[nn.Parameter, ...]:
        """Those factors that start at zero on the output side, if it has a low-rank pair: peft's lora_B."""
        return ()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(x, self.delta().to(x.dtype))

    def forward_low_rank(self, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
        """The base's output plus scale B (A dropout(x)), with A (r, in) and B (out, r); dropout in training only."""
        weight = self.base if isinstance(self.base, QuantisedLinear) else self.base.weight
        return low_rank_linear(x, weight, self.base.bias, A, B, scale, dropout if self.training else 0.0)

    def merged(self) -> nn.Linear:
        """A plain linear layer with the same function, in the base's number format."""
        weight = (self.base.weight.float() + self.delta()).to(self.base.weight.dtype)
        out_features, in_features = weight.shape
        plain = nn.Linear(in_features, out_features, bias=self.base.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.register_parameter("bias", self.base.bias)
        return plain


def wrap_linears(model: nn.Module, targets: Sequence[str], wrap: Callable[[nn.Linear], AdaptedLinear]) -> None:
    """Freeze `model` and replace its linear layers of the roles `targets` (or `all` but the head) by adapted ones.

    Raises:
        ConfigError: for a role that this model does not have, with those that it has.
    """
    model.requires_grad_(False)
    for site in target_sites(model, targets).values():
        site.replace(wrap(cast(nn.Linear, site.module)))


L = TypeVar("L", bound=AdaptedLinear)


def adapted_layers(model: nn.Module, kind: type[L]) -> Iterator[tuple[str, L]]:
    """The adapted linear layers of a kind as (dotted name, module)."""
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield name, module


def saved_sites(model: nn.Module, kind: type[L]) -> Iterator[tuple[str, L]]:
    """The adapted linear layers of a kind as (the name that peft saves them under, module)."""
    names = hf_names(model)
    for site, module in adapted_layers(model, kind):
        yield PREFIX + names[f"{site}.weight"].removesuffix(".weight"), module


def set_parameter_(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter a new value, of another rank too; it stays the same object, as optimizers know it by that."""
    with torch.no_grad():
        if parameter.shape == value.shape:
            parameter.copy_(value)
        else:
            parameter.grad = None
            parameter.data = value.detach().to(parameter).clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def merge_linears(model: nn.Module) -> None:
    """Replace every adapted linear layer by its merged plain one.

    Raises:
        AdapterError: on a quantised base, where a merge would lose what was trained to rounding.
    """
    bases = [site.module.base for site in linears(model).values() if isinstance(site.module, AdaptedLinear)]
    if kinds := {base.kind for base in bases if isinstance(base, QuantisedLinear)}:
        raise AdapterError(
            f"the base is quantised ({', '.join(sorted(kinds))}), and an adapter cannot be merged into so few bits. "
            "microplane merge merges into the full-precision base and states the difference; or load it as float32"
        )
    for site in linears(model).values():
        if isinstance(module := site.module, AdaptedLinear):
            plain, base = module.merged(), module.base
            site.replace(base.restored(plain) if isinstance(base, TransposedLinear) else plain)
