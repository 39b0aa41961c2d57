"""PaCA, arXiv 2503.01905: of each weight W (out, in) r columns c, drawn at random, train; all else is frozen.

    h = W' x  with  W'[:, c] = W[:, c] + s D,  D (out, r) from zero,  s = alpha / r;   dL/dD = s G^T x[:, c]

The columns are written into W for a product, forward or backward, and taken out after it: there is one product as in
the untouched layer, and backward keeps x[:, c] (T, r) instead of x. A quantised base has no columns to write into:
there s x[:, c] D^T is added to the product (the paper's QPaCA keeps these columns in 16 bits instead).

The authors' code trains P = W[:, c] / s and writes s P into the weight for good. A step changes W' alike here and
there; but from D = 0 the start is the base to the bit, weight decay pulls to the base's weight and not to zero, and
what is saved is a change. It is a LoRA whose A selects c, so `convert` is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.errors import AdapterError, ConfigError
from microplane.methods.adapted_linear import AdaptedLinear, saved_sites
from microplane.methods.linear_method import LinearMethod
from microplane.methods.method import PREFIX
from microplane.nn.ops.autograd import apply
from microplane.nn.quantised import QuantisedLinear


class PaCALinear(AdaptedLinear):
    paca_columns: Tensor  # c, (r,) int64, ascending

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__(base)
        if rank > self.in_features:
            raise ConfigError(
                f"method.rank = {rank}: a layer of this model has {self.in_features} inputs, so {self.in_features} "
                "columns at most can train"
            )
        drawn = torch.randperm(self.in_features, device="cpu")[:rank].sort().values  # the same on every device
        self.register_buffer("paca_columns", drawn.to(self.device))
        self.paca_change = nn.Parameter(torch.zeros(self.out_features, rank, device=self.device))  # D
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        y = apply(_ColumnProduct, rows, self.paca_change, self)
        return y.view(*x.shape[:-1], self.out_features)

    @contextmanager
    def columns_in_place(self) -> Iterator[Tensor]:
        """The weight W' (out, in), as long as the context lasts; not for two threads at once."""
        weight = self.base.weight.detach()
        untouched = weight[:, self.paca_columns]
        weight.index_copy_(1, self.paca_columns, (untouched + self.scale * self.paca_change.detach()).to(weight.dtype))
        try:
            yield weight
        finally:
            weight.index_copy_(1, self.paca_columns, untouched)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        A = F.one_hot(self.paca_columns, self.in_features).to(self.paca_change.dtype)
        return A, self.scale * self.paca_change

    def delta(self) -> Tensor:
        change = self.paca_change
        return change.new_zeros(self.out_features, self.in_features).index_copy(
            1, self.paca_columns, self.scale * change
        )

    def saved(self) -> dict[str, Tensor]:
        return {"paca_columns": self.paca_columns, "paca_change": self.paca_change}


class _ColumnProduct(torch.autograd.Function):
    """x W'^T + bias: (T, in) -> (T, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Tensor, layer: PaCALinear) -> Tensor:
        base, bias = layer.base, layer.base.bias
        selected = x[:, layer.paca_columns]  # (T, r)
        if isinstance(base, QuantisedLinear):
            y = base.product(x, None if bias is None else bias.to(x.dtype))
            y.addmm_(selected, (layer.scale * change).to(x.dtype).t())
        else:
            with layer.columns_in_place() as weight:
                y = F.linear(x, weight, bias)
        ctx.save_for_backward(selected if ctx.needs_input_grad[1] else None)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (selected,), layer = ctx.saved_tensors, ctx.layer
        change, grad_x, grad_change = layer.paca_change, None, None
        if ctx.needs_input_grad[1]:
            grad_change = (grad.t() @ selected).to(change.dtype).mul_(layer.scale)
        if ctx.needs_input_grad[0]:
            if isinstance(layer.base, QuantisedLinear):
                through = grad @ (layer.scale * change.detach()).to(grad.dtype)  # (T, r)
                grad_x = layer.base.product_back(grad).index_add_(1, layer.paca_columns, through)
            else:
                with layer.columns_in_place() as weight:
                    grad_x = grad @ weight
        return grad_x, grad_change, None


class PaCA(LinearMethod):
    name: ClassVar[str] = "paca"
    summary: ClassVar[str] = "a few columns of each weight train: no second product, fewer activations than LoRA"
    default_lr: ClassVar[float] = 5e-4
    layer: ClassVar[type[AdaptedLinear]] = PaCALinear

    rank: int = Field(16, ge=1, description="r, how many columns (inputs) of each weight train; drawn with train.seed")
    alpha: float = Field(64.0, gt=0, description="the change is scaled by alpha / rank")

    def wrap(self, base: nn.Linear) -> PaCALinear:
        return PaCALinear(base, self.rank, self.alpha / self.rank)

    def load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Raises: AdapterError, also where the columns are not different inputs of the layer."""
        for path, layer in saved_sites(model, PaCALinear):
            name = f"{PREFIX}{path}.paca_columns"
            if name in state and not _are_columns(state[name], layer.in_features):
                raise AdapterError(
                    f"{name} is damaged: it must hold different whole numbers from 0 to {layer.in_features - 1}, which "
                    "say what inputs of the layer are changed"
                )
        super().load(model, state)


def _are_columns(found: Tensor, inputs: int) -> bool:
    if found.dtype != torch.int64:
        return False
    return len(set(found.tolist())) == found.numel() and bool(((found >= 0) & (found < inputs)).all())
