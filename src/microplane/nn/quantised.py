"""Linear layers whose frozen weight is stored in 8 or 4 bits and multiplied in a floating format.

The weight is dequantised for a product and again for its backward pass; in between nothing of it is kept but its codes,
so that at any time at most one layer of a model exists in full. Shapes: x (..., in), weight (out, in), y (..., out).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.nn import int8, nf4


class QuantisedLinear(nn.Module):
    """A frozen linear layer. What its weight is made of are buffers: they neither train nor get a gradient.

    Args:
        dtype: of the products, and of `weight`.
        cached: keep the dequantised weight from its first use on: faster, for as much memory as without quantising.
    """

    kind: ClassVar[str]  # as `model.dtype` names it
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype, cached: bool = False):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dtype, self.cached = dtype, cached
        self._kept: Tensor | None = None
        self.register_parameter("bias", None)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, cached: bool = False) -> QuantisedLinear:
        """Quantise `weight` (out, in); on the meta device, make room for its parts."""
        linear = cls(weight.shape[1], weight.shape[0], dtype, cached)
        linear.set_parts(cls.parts_of(weight))
        linear.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        return linear

    @classmethod
    def parts_of(cls, weight: Tensor) -> Any:
        """`weight` quantised, as a named tuple of tensors."""
        raise NotImplementedError

    def set_parts(self, parts: Any) -> None:
        for name, tensor in parts._asdict().items():
            self.register_buffer(name, tensor)

    def dequantise(self, out: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """(out, in) in `dtype`, made anew each time it is asked for."""
        return self.dequantise() if self._kept is None else self._kept

    def passing_weight(self) -> Tensor:
        """The same in memory that the next layer's will overwrite: for one product, not to be kept."""
        if self.cached and self._kept is None:
            self._kept = self.dequantise()
        if self._kept is not None:
            return self._kept
        return self.dequantise(_room((self.out_features, self.in_features), self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return _QuantisedProduct.apply(x, self.passing_weight, None if self.bias is None else self.bias.to(x.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantisedLinear:
        """What `.to(dtype)` changes is the format of the products; the scales stay as precise as they are."""
        exact = {name: part for name, part in self.named_buffers() if part.is_floating_point()}
        super()._apply(fn, recurse)
        for name, part in exact.items():
            setattr(self, name, part.to(getattr(self, name).device))
        self.dtype, self._kept = fn(torch.empty(0, dtype=self.dtype)).dtype, None
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _QuantisedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight(), bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_x = grad @ ctx.weight() if ctx.needs_input_grad[0] else None
        return grad_x, None, grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None


class NF4Linear(QuantisedLinear):
    kind = "nf4"
    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    offset: Tensor

    @classmethod
    def parts_of(cls, weight: Tensor) -> nf4.NF4:
        return nf4.quantise(weight)

    def dequantise(self, out: Tensor | None = None) -> Tensor:
        parts = nf4.NF4(self.codes, self.absmax, self.nested_absmax, self.offset)
        return nf4.dequantise(parts, (self.out_features, self.in_features), self.dtype, out)


class Int8Linear(QuantisedLinear):
    kind = "int8"
    codes: Tensor
    scale: Tensor

    @classmethod
    def parts_of(cls, weight: Tensor) -> int8.Int8:
        return int8.quantise(weight)

    def dequantise(self, out: Tensor | None = None) -> Tensor:
        return int8.dequantise(int8.Int8(self.codes, self.scale), self.dtype, out)


def weight_count(model: nn.Module) -> int:
    """The numbers that the model's weights stand for, also where they are stored quantised."""
    quantised = [module for module in model.modules() if isinstance(module, QuantisedLinear)]
    stored = sum(module.in_features * module.out_features for module in quantised)
    return stored + sum(parameter.numel() for parameter in model.parameters())


def bytes_held(model: nn.Module) -> int:
    """The memory of the model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


QUANTISED: dict[str, type[QuantisedLinear]] = {kind.kind: kind for kind in (Int8Linear, NF4Linear)}


_local = threading.local()


def _room(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory that is there already; new memory would cost more than the arithmetic. Each thread has its own."""
    rooms: dict[str, Tensor] = _local.__dict__
    wanted = shape[0] * shape[1]
    key = str(dtype)
    if key not in rooms or rooms[key].numel() < wanted:
        rooms.pop(key, None)  # before the larger one is made
        rooms[key] = torch.empty(wanted, dtype=dtype)
    return rooms[key][:wanted].view(shape)
