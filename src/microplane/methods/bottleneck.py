"""Bottleneck adapters, arXiv 1902.00751, 2005.00247 (pfeiffer), 2110.04366 (parallel): y + W_up f(W_down y + b) + b'.

y is a sub-layer's output before it is added to the stream. houlsby: after every attention and every feed-forward layer,
and the norms train too. pfeiffer: after the feed-forward layer only; the paper has it behind the sum and its norm, here
it stands before the sum in all kinds. parallel: mlp(x) + s W_up f(W_down x + b) + s b', beside the feed-forward layer,
whose input a socket does not see: there the block's `mlp` is wrapped.
W_down (m, D) and W_up (D, m). W_up starts at 0, so the model is unchanged at first.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from microplane.errors import ConfigError
from microplane.methods.disable import AddedModule
from microplane.methods.method import NEEDS_SOCKETS, Method
from microplane.methods.norms import norm_parameters, norms_apart, unfreeze
from microplane.nn.layers import ACTIVATIONS, drawn_linear
from microplane.nn.ops.dropout import Dropout

SOCKETS = {
    "houlsby": ("attention_socket", "cross_attention_socket", "mlp_socket"),
    "pfeiffer": ("mlp_socket",),
    "parallel": (),
}
SMALL = 1e-3  # the deviation of a start near the identity, as the authors' code has it


class Adapter(nn.Module):
    """W_up f(W_down x + b) + b', (T, D) -> (T, D)."""

    def __init__(self, width: int, inner: int, knobs: Bottleneck, device: torch.device):
        super().__init__()
        self.down_proj = drawn_linear(width, inner, device)
        self.up_proj = drawn_linear(inner, width, device)
        self.activation = ACTIVATIONS[knobs.activation]
        self.dropout = Dropout(knobs.dropout)
        for linear in (self.down_proj, self.up_proj):
            nn.init.zeros_(linear.bias)
        if knobs.init == "zero":
            nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up_proj.weight)
        else:
            for linear in (self.down_proj, self.up_proj):
                nn.init.trunc_normal_(linear.weight, std=SMALL, a=-2 * SMALL, b=2 * SMALL)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up_proj(self.dropout(self.activation(self.down_proj(x))))
        return y


class Serial(AddedModule, Adapter):
    """For a socket: with what it is given added."""

    def forward(self, y: Tensor) -> Tensor:
        return y + super().forward(y)

    def replaced(self) -> nn.Module:
        return nn.Identity()


class Parallel(AddedModule, nn.Module):
    """A feed-forward layer and an adapter beside it."""

    def __init__(self, base: nn.Module, adapter: Adapter, scale: float):
        super().__init__()
        self.base, self.adapter, self.scale = base, adapter, scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.scale * self.adapter(x)
        return y

    def replaced(self) -> nn.Module:
        return self.base


class Bottleneck(Method):
    name: ClassVar[str] = "bottleneck"
    summary: ClassVar[str] = "small networks between the layers (adapters of Houlsby, Pfeiffer, parallel)"
    default_lr: ClassVar[float] = 3e-3
    needs_own_model: ClassVar[str | None] = NEEDS_SOCKETS
    not_convertible: ClassVar[str | None] = "adds layers that are not linear, no change of a weight"

    kind: Literal["houlsby", "pfeiffer", "parallel"] = Field(
        "pfeiffer",
        description="where they stand: houlsby after attention and feed-forward (norms train too), "
        "pfeiffer after the feed-forward, parallel beside it",
    )
    reduction: int = Field(16, ge=1, description="the model's width / this is the width inside")
    width: int | None = Field(None, ge=1, description="the width inside, instead of a reduction")
    activation: Literal["relu", "gelu", "gelu_pytorch_tanh", "silu"] = Field("relu", description="between the two")
    init: Literal["zero", "small"] = Field(
        "zero", description="zero: the second matrix at 0, so nothing changes at first; small: both near 0"
    )
    scale: float = Field(4.0, gt=0, description="kind parallel: what its output is multiplied by")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the inner activations")
    norms: bool | None = Field(None, description="the model's norms train too; by default with houlsby alone")

    @property
    def with_norms(self) -> bool:
        return self.kind == "houlsby" if self.norms is None else self.norms

    @property
    def starts_at_base(self) -> bool:  # type: ignore[override]
        return self.init == "zero"

    @property
    def trains(self) -> Literal["adapter", "vectors"]:  # type: ignore[override]
        return "vectors" if self.with_norms else "adapter"

    def idle_knobs(self) -> dict[str, str]:
        idle = {}
        if self.width is not None:
            idle["reduction"] = f"method.width = {self.width} gives the width itself. Leave one of the two out"
        if self.kind != "parallel":
            idle["scale"] = f"only kind parallel is scaled, and method.kind = {self.kind!r}. Leave it out"
        return idle

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        device = next(model.parameters()).device
        blocks = [module for module in model.modules() if isinstance(getattr(module, "mlp_socket", None), nn.Module)]
        if not blocks:
            raise ConfigError(f"{type(model).__name__} has no sockets for bottleneck adapters; choose lora")
        for block in blocks:
            D: int = getattr(block, "width", cast(Any, model).config.hidden_size)
            inner = self.width or max(1, D // self.reduction)
            for socket in SOCKETS[self.kind]:
                if hasattr(block, socket):
                    setattr(block, socket, Serial(D, inner, self, device))
            if self.kind == "parallel":
                block.mlp = Parallel(block.get_submodule("mlp"), Adapter(D, inner, self, device), self.scale)
        if self.with_norms:
            unfreeze(norm_parameters(model))

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        return norms_apart(model, lr)
