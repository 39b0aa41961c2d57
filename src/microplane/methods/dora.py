"""DoRA, arXiv 2402.09353: W' = m * (W + s B A) / |W + s B A|, with one magnitude m and one length |.| per output.

Start: m the lengths of W's rows, B zero. The length is a constant for the gradient (section 4.3 of the paper). Dropout
is on the way through the change only: W (x - x~) + g (W + s B A) x~, with g = m / |W + s B A| and x~ = dropout(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from microplane.methods.adapted_linear import adapted_layers, set_parameter_
from microplane.methods.lora import LoRA, LoRALinear
from microplane.nn.ops.dropout import dropout
from microplane.nn.ops.low_rank import row_norms


class DoRALinear(LoRALinear):
    squares: Tensor  # (out,): the squared length of each row of W

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__(base, rank, scale, dropout)
        weight = base.weight.detach()
        wide = weight if weight.dtype == torch.float64 else weight.float()
        there = not weight.is_meta  # a square or a root there would import torch's compiler, `empty_like` sympy
        self.register_buffer("squares", wide.square().sum(1) if there else wide.new_empty(len(wide)))
        self.lora_magnitude_vector = nn.Parameter(self.squares.sqrt() if there else wide.new_empty(len(wide)))
        self._remembered: tuple[Any, Tensor] | None = None

    def gain(self, A: Tensor, B: Tensor) -> Tensor:
        """m / |W + s B A|, (out,)."""
        return self.lora_magnitude_vector / self._lengths(A, B)

    @torch.no_grad()
    def _lengths(self, A: Tensor, B: Tensor) -> Tensor:
        """Remembered where nothing trains: generation would otherwise pay for them at every token.

        A change through `.data`, which counts no version up, is noticed after the next `train()` or `eval()` only.
        """
        made_of = [(tensor.data_ptr(), tensor._version) for tensor in (self.lora_A, self.lora_B)]
        if self._remembered is not None and self._remembered[0] == made_of:
            return self._remembered[1]
        lengths = row_norms(self.base.weight, self.squares, A, B, self.scale)
        self._remembered = None if self.training else (made_of, lengths)
        return lengths

    def train(self, mode: bool = True) -> DoRALinear:
        self._remembered = None  # a fused optimizer changes tensors without counting their versions up
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.factors()
        gain = self.gain(A, B).to(x.dtype)
        if self.training and self.dropout:
            dropped = dropout(x, self.dropout)
            changed = self.forward_low_rank(dropped, A, B, self.scale)  # W x~ + s B A x~ + bias
            if self.base.bias is not None:
                changed = changed - self.base.bias
            rest: Tensor = self.base(x - dropped)
            return rest + gain * changed
        y, bias = gain * self.forward_low_rank(x, A, B, self.scale), self.base.bias
        return y if bias is None else y + (1 - gain) * bias

    @torch.no_grad()
    def delta(self) -> Tensor:
        weight = self.base.weight.to(self.squares.dtype)
        changed = weight + super().delta()
        change: Tensor = (self.lora_magnitude_vector / changed.norm(dim=1)).unsqueeze(1) * changed - weight
        return change

    def low_rank(self) -> None:
        """The lengths change every row of W, so there is none."""

    def saved(self) -> dict[str, Tensor]:
        return {**super().saved(), "lora_magnitude_vector": self.lora_magnitude_vector}

    def saved_shapes(self, saved: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {**super().saved_shapes(saved), "lora_magnitude_vector": (self.out_features,)}

    def load_saved(self, saved: Mapping[str, Tensor]) -> None:
        super().load_saved(saved)
        set_parameter_(self.lora_magnitude_vector, saved["lora_magnitude_vector"])


class DoRA(LoRA):
    name: ClassVar[str] = "dora"
    summary: ClassVar[str] = "LoRA for the direction of each weight row, a vector for its length; slower"
    default_lr: ClassVar[float] = 2e-3
    peft_flags: ClassVar[dict[str, bool]] = {"use_dora": True}

    def wrap(self, base: nn.Linear) -> LoRALinear:
        return DoRALinear(base, self.rank, self.scale, self.dropout)

    def init_from_data(
        self,
        model: nn.Module,
        losses: Sequence[Callable[[], Tensor]],
        weights: Callable[[str], Tensor] | None = None,
    ) -> None:
        """The magnitudes are those of the weight with its first pair, so that every gain is 1 at first."""
        super().init_from_data(model, losses, weights)
        for _, module in adapted_layers(model, DoRALinear):
            module.lora_magnitude_vector.data.copy_(module._lengths(*module.factors()))

    def without_decay(self, model: nn.Module) -> list[nn.Parameter]:
        """The magnitudes: at 0 the layers are gone, and not as they were."""
        return [module.lora_magnitude_vector for _, module in adapted_layers(model, DoRALinear)]

    @classmethod
    def of_peft(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Also with rsLoRA's scale: the alpha that gives the same one is taken."""
        knobs = super().of_peft(config)
        if knobs is None or not config.get("use_rslora"):
            return knobs
        try:
            return knobs | {"alpha": knobs["alpha"] * math.sqrt(knobs["rank"])}
        except (TypeError, ValueError, OverflowError):  # not numbers: the knobs' own checks say so
            return knobs
