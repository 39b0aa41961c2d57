"""Linear layers whose frozen weight is stored in 8 or 4 bits and multiplied in a floating-point format, or in 8 bits.

The weight is dequantised for the product and once more for the backward pass. Between them only its codes are kept, so
at any time at most one layer of a model exists dequantised. Shapes: x (..., in), weight (out, in), y (..., out).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.nn.ops import few_rows, int8, nf4
from microplane.nn.ops.autograd import apply
from microplane.nn.ops.scratch import persistent, scratch_buffer


class QuantisedLinear(nn.Module):
    """A frozen linear layer. The parts of its quantised weight are buffers: they do not train and get no gradient.

    Args:
        dtype: number format of inputs, outputs and of `weight`.
        cached: keep the dequantised weight after its first use: faster, and as much memory as without quantising.
        in_8_bits: multiply in 8 bits (nn/ops/int8.py) instead of in `dtype`.
    """

    kind: ClassVar[str]  # as `model.dtype` names it
    parts_type: ClassVar[Any]  # of `parts_of`, a named tuple
    codes: Tensor
    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, dtype: torch.dtype, cached: bool = False, in_8_bits: bool = False
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dtype, self.cached, self.in_8_bits = dtype, cached, in_8_bits
        self._cached_weight: Tensor | int8.Int8 | None = None
        self._absmax: Tensor | None = None  # of nf4, in float32: made once for generation, half a bit a weight
        self.register_parameter("bias", None)

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        cached: bool = False,
        in_8_bits: bool = False,
    ) -> QuantisedLinear:
        """Quantise `weight` (out, in). On the meta device only the shapes of the parts are made."""
        linear = cls(weight.shape[1], weight.shape[0], dtype, cached, in_8_bits)
        linear.set_parts(cls.parts_of(weight))
        linear.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        return linear

    @classmethod
    def parts_of(cls, weight: Tensor) -> Any:
        """`weight` quantised, as a named tuple of tensors."""
        raise NotImplementedError

    def set_parts(self, parts: Any) -> None:
        """Take over what `parts_of` returned."""
        for name, tensor in parts._asdict().items():
            self.register_buffer(name, tensor)

    def dequantise(self, out: Tensor | None = None) -> Tensor:
        """The weight (out, in) in `dtype`; in the memory of `out` if given."""
        raise NotImplementedError

    def in_int8(self, out: Tensor | None = None) -> int8.Int8:
        """The weight in 8 bits. `out` (out, in) int8, if given, may be used for the codes."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """(out, in) in `dtype`: dequantised at each access, unless it is cached."""
        return self._cached_weight if isinstance(self._cached_weight, Tensor) else self.dequantise()

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + bias, (T, in) -> (T, out), without a gradient."""
        if few_rows.few(x) and (y := self._few_rows(x, bias)) is not None:
            return y
        weight = self._multiplied_weight()
        return F.linear(x, weight, bias) if isinstance(weight, Tensor) else int8.product(x, weight, bias)

    def stored(self) -> few_rows.Stored | None:
        """The weight as products of a few rows take it; None where they cannot."""
        return None

    def _few_rows(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """The product of a few rows in generation, with the weight as it is stored; None where that is not done so."""
        stored = self.stored()
        return None if stored is None else few_rows.stored_linear(x, stored, bias)

    def product_back(self, grad: Tensor) -> Tensor:
        """grad W, (T, out) -> (T, in), without a gradient."""
        weight = self._multiplied_weight()
        return grad @ weight if isinstance(weight, Tensor) else int8.product_back(grad, weight)

    def _multiplied_weight(self) -> Tensor | int8.Int8:
        """The weight to multiply with: the cached copy, or one in a scratch buffer that all layers of the thread share,
        valid until the next call."""
        if self._cached_weight is not None:
            return self._cached_weight
        if self.cached:
            with persistent():
                self._cached_weight = self.in_int8() if self.in_8_bits else self.dequantise()
            return self._cached_weight
        shape, dtype = (self.out_features, self.in_features), torch.int8 if self.in_8_bits else self.dtype
        out = scratch_buffer("weight", shape, dtype, self.codes.device)
        return self.in_int8(out) if self.in_8_bits else self.dequantise(out)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.unflatten(apply(_QuantisedProduct, x.flatten(0, -2), self, bias), 0, x.shape[:-1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantisedLinear:
        """`.to(dtype)` changes the format of the products; the scales keep their precision."""
        exact = {name: part for name, part in self.named_buffers() if part.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, part in exact.items():
            setattr(self, name, part.to(getattr(self, name).device))
        self.dtype, self._cached_weight, self._absmax = fn(torch.empty(0, dtype=self.dtype)).dtype, None, None
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        """Each layer has the parts that a file gives it, which may be of other shapes: codes of other bits, scales in
        full."""
        for name in self.parts_type._fields:
            if (part := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, part)
        super()._load_from_state_dict(state_dict, prefix, *more)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _QuantisedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantisedLinear, bias: Tensor | None) -> Tensor:
        ctx.linear = linear
        return linear.product(x, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = ctx.linear.product_back(grad) if ctx.needs_input_grad[0] else None
        return grad_x, None, grad.sum(0) if ctx.needs_input_grad[2] else None


class NF4Linear(QuantisedLinear):
    kind = "nf4"
    parts_type = nf4.NF4
    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    offset: Tensor

    @classmethod
    def parts_of(cls, weight: Tensor) -> nf4.NF4:
        return nf4.quantise(weight)

    @property
    def parts(self) -> nf4.NF4:
        return nf4.NF4(self.codes, self.absmax, self.nested_absmax, self.offset)

    def stored(self) -> few_rows.Stored | None:
        if self.in_features % nf4.BLOCK:  # blocks go on from row to row
            return None
        if self._absmax is None:
            with persistent():
                self._absmax = nf4.dequantise_absmax(self.parts)
        shape = self.out_features, self.in_features
        return few_rows.Stored(few_rows.NF4, self.codes, *shape, self._absmax, nf4.levels(self.codes.device))

    def dequantise(self, out: Tensor | None = None) -> Tensor:
        return nf4.dequantise(self.parts, (self.out_features, self.in_features), self.dtype, out)

    def in_int8(self, out: Tensor | None = None) -> int8.Int8:
        if self.in_features % nf4.BLOCK:  # blocks go on from row to row
            return int8.quantise(nf4.dequantise(self.parts, (self.out_features, self.in_features)))
        return nf4.to_int8(self.parts, (self.out_features, self.in_features), out)


class Int8Linear(QuantisedLinear):
    kind = "int8"
    parts_type = int8.Int8
    codes: Tensor
    scale: Tensor

    @classmethod
    def parts_of(cls, weight: Tensor) -> int8.Int8:
        return int8.quantise(weight)

    def stored(self) -> few_rows.Stored | None:
        return few_rows.Stored(few_rows.INT8, self.codes, self.out_features, self.in_features, self.scale)

    def dequantise(self, out: Tensor | None = None) -> Tensor:
        return int8.dequantise(self.in_int8(), self.dtype, out)

    def in_int8(self, out: Tensor | None = None) -> int8.Int8:
        return int8.Int8(self.codes, self.scale)


def weight_count(model: nn.Module) -> int:
    """How many weights the model has; a quantised layer counts with the size of its full weight."""
    quantised = [module for module in model.modules() if isinstance(module, QuantisedLinear)]
    stored = sum(module.in_features * module.out_features for module in quantised)
    return stored + sum(parameter.numel() for parameter in model.parameters())


def first_not_finite(model: nn.Module) -> str | None:
    """The name of a parameter or a part of a quantised weight that holds NaN or infinity, or of any other buffer with
    NaN; else None."""
    weights = set(dict(model.named_parameters()))
    for path, module in model.named_modules():
        if isinstance(module, QuantisedLinear):
            weights |= {f"{path}.{part}" for part in module.parts_type._fields}
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        tensor = tensor.detach()
        if not tensor.is_floating_point() or tensor.is_meta or torch.isfinite(tensor.sum(dtype=torch.float32)):
            continue  # a sum is quick; it may overflow by itself
        wrong = ~torch.isfinite(tensor) if name in weights else torch.isnan(tensor)
        if wrong.any():
            return name
    return None


def bytes_held(model: nn.Module) -> int:
    """Memory of the model's parameters and buffers, in bytes."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


QUANTISED: dict[str, type[QuantisedLinear]] = {kind.kind: kind for kind in (Int8Linear, NF4Linear)}
