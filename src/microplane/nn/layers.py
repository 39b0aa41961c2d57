"""The small layers that model families share: linear layers, norms and feed-forward layers.

Shapes: T tokens, D model width, M width of the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microplane.device import CPU
from microplane.nn.ops.dropout import Dropout
from microplane.nn.ops.few_rows import linear
from microplane.nn.ops.pointwise import GATES, gate_by, layer_norm, rms_norm
from microplane.nn.selective_recompute import recomputed

GELU_TANH = partial(F.gelu, approximate="tanh")  # which has several names in config.json
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast"), GELU_TANH),
}


class Linear(nn.Linear):
    """A linear layer that rounds its weight to the number format of its input: (..., in) -> (..., out).

    So a weight that trains can be stored in float32, where small updates are not lost, and multiplied in bfloat16.
    """

    __call__: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Embedding(nn.Embedding):
    """One whose values are still to be read or drawn: torch would draw them at once, and on the meta device imports its
    compiler for that, which takes 2 to 3 seconds."""

    def reset_parameters(self) -> None:
        pass


def drawn_linear(in_features: int, out_features: int, device: torch.device) -> Linear:
    """A new linear layer with torch's own start, the same on every device."""
    linear = Linear(in_features, out_features, device=device if device.type == "meta" else CPU)
    return linear if linear.weight.device == device else linear.to(device)


class LayerNorm(nn.LayerNorm):
    """Layer norm (arXiv 1607.06450): computed in float32 inside, with weights of any number format."""

    __call__: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(layer_norm, x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467), computed in float32 and returned in x's number format.

    `around_one` is Gemma's variant: it stores weight - 1, and multiplies before rounding instead of after.
    """

    __call__: Callable[..., Tensor]

    def __init__(self, width: int, eps: float, around_one: bool = False):
        super().__init__()
        self.eps = eps
        self.around_one = around_one
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The weight that changes nothing: plain division by the root mean square."""
        nn.init.constant_(self.weight, 0.0 if self.around_one else 1.0)

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        if not self.around_one:
            return recomputed(rms_norm, x, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.float())).type_as(x)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}" + (", around_one=True" if self.around_one else "")


class MLP(nn.Module):
    """down(dropout(act(up(x)))) (arXiv 1706.03762, equation 2)."""

    __call__: Callable[..., Tensor]

    def __init__(self, width: int, inner: int, activation: str, bias: bool = False, dropout: float = 0.0):
        super().__init__()
        self.activation = activation
        self.up = Linear(width, inner, bias=bias)
        self.down = Linear(inner, width, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (T, D) -> (T, D)
        inner = recomputed(ACTIVATIONS[self.activation], self.up(x))  # (T, M)
        return self.down(self.dropout(inner))


class GatedMLP(nn.Module):
    """down(dropout(act(gate(x)) * up(x))) (arXiv 2002.05202)."""

    __call__: Callable[..., Tensor]

    def __init__(
        self, width: int, inner: int, activation: str, bias: bool = False, fused: bool = False, dropout: float = 0.0
    ):
        super().__init__()
        self.activation, self.fused = activation, fused
        if fused:
            self.gate_up = Linear(width, 2 * inner, bias=bias)
        else:
            self.gate = Linear(width, inner, bias=bias)
            self.up = Linear(width, inner, bias=bias)
        self.down = Linear(inner, width, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (T, D) -> (T, D)
        gate, up = self.gate_up(x).chunk(2, dim=-1) if self.fused else (self.gate(x), self.up(x))  # (T, M)
        return self.down(self.dropout(gated(self.activation, gate, up)))


def gated(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up (arXiv 2002.05202): (T, M), (T, M) -> (T, M)."""
    if activation in GATES:
        return recomputed(gate_by, activation, gate, up)
    return recomputed(_gated, activation, gate, up)


def _gated(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    return ACTIVATIONS[activation](gate) * up
