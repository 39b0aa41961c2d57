"""The kind of method that reparameterises a frozen linear layer.

One law, tested for every member: in eval mode `forward(x) == merged()(x)`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.device import drawn
from microplane.errors import AdapterError
from microplane.methods.disable import AddedModule
from microplane.methods.method import copy_strictly, forget_method
from microplane.models.contract import adapter_names, linears, module_map_of
from microplane.nn.ops.low_rank import low_rank_linear
from microplane.nn.quantised import QuantisedLinear, weight_count
from microplane.nn.transposed import TransposedLinear


class AdaptedLinear(AddedModule, nn.Module):
    """A frozen linear layer plus something small that trains. The base may be quantised, nn/quantised.py."""

    def __init__(self, base: nn.Linear | QuantisedLinear):
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features

    def __getattr__(self, name: str) -> Any:
        """Reading `.weight` is an error: a module that does (MultiheadAttention) would silently bypass the adapter."""
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
        y: Tensor = self.base(x)
        return y + F.linear(x, self.delta().to(x.dtype))

    def forward_low_rank(self, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
        """The base's output plus scale B (A dropout(x)), with A (r, in) and B (out, r); dropout in training only."""
        weight = self.base if isinstance(self.base, QuantisedLinear) else self.base.weight
        return low_rank_linear(x, weight, self.base.bias, A, B, scale, dropout if self.training else 0.0)

    def saved(self) -> dict[str, Tensor]:
        """What is saved of this layer, by the ends of the names in the file."""
        return dict(self.named_parameters(recurse=False))

    def saved_shapes(self, saved: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The shapes that this layer can load, by the same ends.

        Args:
            saved: what a file holds for this layer, whose ranks are to be taken; empty: the ranks stay.
        """
        return {end: tuple(tensor.shape) for end, tensor in self.saved().items()}

    def load_saved(self, saved: Mapping[str, Tensor]) -> None:
        """Take the tensors that `saved` gave; their shapes have been checked."""
        copy_strictly(self.saved(), saved)

    def replaced(self) -> nn.Module:
        return self.base.restored(self.base) if isinstance(self.base, TransposedLinear) else self.base

    def merged(self) -> nn.Linear:
        """A plain linear layer with the same function, in the base's number format."""
        base = self.base.weight
        weight = (base.to(torch.promote_types(base.dtype, torch.float32)) + self.delta()).to(base.dtype)
        out_features, in_features = weight.shape
        plain = nn.Linear(in_features, out_features, bias=self.base.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.register_parameter("bias", self.base.bias)
        return plain


L = TypeVar("L", bound=AdaptedLinear)


def adapted_layers(model: nn.Module, kind: type[L]) -> Iterator[tuple[str, L]]:
    """The adapted linear layers of a kind as (dotted name, module)."""
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield name, module


def adapted_line(model: nn.Module) -> str | None:
    """Which linear layers of a model that is not ours are adapted, and how much of the model they are; None of ours."""
    layers = [(name, layer.base) for name, layer in adapted_layers(model, AdaptedLinear)]
    if module_map_of(model) is None or not layers:
        return None
    kinds = Counter(name.rsplit(".", 1)[-1] for name, _ in layers)
    inside = sum(base.in_features * base.out_features for _, base in layers)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"adapts    {len(layers)} linear layers, {inside / weight_count(model):.0%} of the weights: {told}"


def saved_sites(model: nn.Module, kind: type[L]) -> Iterator[tuple[str, L]]:
    """The adapted linear layers of a kind as (dotted name in Hugging Face's model, module): where they are saved."""
    layers = dict(adapted_layers(model, kind))
    yield from zip(hf_paths(model, layers), layers.values(), strict=True)


def hf_paths(model: nn.Module, sites: Iterable[str]) -> list[str]:
    """The dotted names of linear layers as Hugging Face's model has them, from those that ours has."""
    names = adapter_names(model)
    return [names[f"{site}.weight"].removesuffix(".weight") for site in sites]


def saved_rank(A: Tensor | None, otherwise: int) -> int:
    """How many rows a first factor (r, in) has that a file holds; `otherwise` where it has none, or no matrix."""
    return otherwise if A is None or A.dim() != 2 else len(A)


def drawn_rows(rank: int, width: int, device: torch.device) -> Tensor:
    """Random rows (r, in) as LoRA's A begins: uniform in +-1/sqrt(in), float32, the same on every device."""
    return drawn(lambda rows: nn.init.kaiming_uniform_(rows, a=math.sqrt(5)), rank, width, device=device)


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
    forget_method(model)
