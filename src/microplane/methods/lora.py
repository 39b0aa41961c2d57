"""LoRA, arXiv 2106.09685: h = W x + s B A dropout(x), with A (r, in), B (out, r), s = alpha / r.

Start: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, as the authors' code), B zero, so nothing changes at first.
Other starts are in methods/init. Where one takes a pair (A0, B0) out of the weight, the weight stays as it is and the
change is counted from there: W x + s (B A - B0 A0) x = W x + s ((B - B0) A + B0 (A - A0)) x. That is a pair of rank 2r
on the original base, it is what is saved, and it is zero to the bit when training starts (docs/decisions/0007).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from microplane.errors import AdapterError
from microplane.methods import peft_format
from microplane.methods.adapted_linear import (
    AdaptedLinear,
    adapted_layers,
    drawn_rows,
    saved_rank,
    saved_sites,
    set_parameter_,
)
from microplane.methods.init.low_rank_method import LowRankMethod
from microplane.methods.method import PREFIX


class LoRALinear(AdaptedLinear):
    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__(base)
        self.lora_A = nn.Parameter(drawn_rows(rank, base.in_features, self.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=self.device))
        self.start_A: Tensor | None  # (r, in) and (out, r): where training started, if that is not counted as a change
        self.start_B: Tensor | None
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        self.scale = scale
        self.dropout = dropout

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole change s B A; of rank 2r where it is counted from a start."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        A = torch.cat([self.lora_A, self.lora_A - self.start_A])  # (2r, in)
        B = torch.cat([self.lora_B - self.start_B, self.start_B], 1)  # (out, 2r)
        return A, B

    def output_factors(self) -> tuple[nn.Parameter, ...]:
        return (self.lora_B,)

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.factors()
        return self.forward_low_rank(x, A, B, self.scale, self.dropout)

    def delta(self) -> Tensor:
        A, B = self.factors()
        return self.scale * (B @ A)

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        A, B = self.factors()
        return A, self.scale * B

    @torch.no_grad()
    def set_factors(self, A: Tensor, B: Tensor, relative_to_start: bool) -> None:
        """Set the factors to A (r, in) and B (out, r), of any rank r.

        Args:
            relative_to_start: keep a frozen copy of the two, and let the update be B A - B0 A0, so that the output
                stays as it is (docs/decisions/0007); otherwise B A is the update.
        """
        set_parameter_(self.lora_A, A)
        set_parameter_(self.lora_B, B)
        self.start_A = self.lora_A.detach().clone() if relative_to_start else None
        self.start_B = self.lora_B.detach().clone() if relative_to_start else None

    def saved(self) -> dict[str, Tensor]:
        """What is saved of it, under the ends of peft's names."""
        A, B = self.factors()
        return {"lora_A.weight": A, "lora_B.weight": B}

    def saved_shapes(self, saved: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        rank = saved_rank(saved.get("lora_A.weight"), self.rank)
        return {"lora_A.weight": (rank, self.in_features), "lora_B.weight": (self.out_features, rank)}

    def load_saved(self, saved: Mapping[str, Tensor]) -> None:
        self.set_factors(saved["lora_A.weight"], saved["lora_B.weight"], relative_to_start=False)

    @property
    def rank(self) -> int:
        """Of what is saved."""
        return len(self.lora_A) * (1 if self.start_A is None else 2)


class LoRA(LowRankMethod):
    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "low-rank updates of linear layers; small files, merges exactly"
    default_lr: ClassVar[float] = 2e-3
    layer: ClassVar[type[AdaptedLinear]] = LoRALinear
    peft_type: ClassVar[str | None] = "LORA"
    peft_flags: ClassVar[dict[str, bool]] = {"use_rslora": False, "use_dora": False}

    rank: int = Field(16, ge=1, description="r, the rank of the update")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the update's input, during training")

    @staticmethod
    def scale_of(rank: int, alpha: float) -> float:
        return alpha / rank

    def alpha_of(self, rank: int) -> float:
        """The alpha with which a pair of this rank is scaled as this method scales."""
        return self.alpha if rank == self.rank else self.scale * rank

    @property
    def scale(self) -> float:
        return self.scale_of(self.rank, self.alpha)

    def wrap(self, base: nn.Linear) -> LoRALinear:
        return LoRALinear(base, self.rank, self.scale, self.dropout)

    @property
    def takes_saved_ranks(self) -> bool:  # type: ignore[override]
        """Starts other than zero decide the ranks."""
        return self.start != "zero"

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Of changes that are counted from a start: the pair and its start, which `state` has only as differences."""
        return {
            f"{site}/{name}": tensor
            for site, module in adapted_layers(model, LoRALinear)
            if module.start_A is not None and module.start_B is not None
            for name, tensor in (
                ("A", module.lora_A),
                ("B", module.lora_B),
                ("start_A", module.start_A),
                ("start_B", module.start_B),
            )
        }

    def load_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        for site, module in adapted_layers(model, LoRALinear):
            if f"{site}/start_A" in state:
                module.set_factors(state[f"{site}/start_A"], state[f"{site}/start_B"], relative_to_start=True)
                module.lora_A.data.copy_(state[f"{site}/A"])
                module.lora_B.data.copy_(state[f"{site}/B"])

    def peft_config(self, model: nn.Module) -> dict[str, Any]:
        ranks = {path: layer.rank for path, layer in saved_sites(model, LoRALinear)}
        [(most, _)] = Counter(ranks.values()).most_common(1) or [(self.rank, 0)]
        others = {path: rank for path, rank in ranks.items() if rank != most}
        return {
            **peft_format.common_fields(self, model, ranks),
            **self.peft_flags,
            "r": most,
            "lora_alpha": self.alpha_of(most),
            "lora_dropout": self.dropout,
            "rank_pattern": others,
            "alpha_pattern": {path: self.alpha_of(rank) for path, rank in others.items()},
            "init_lora_weights": "eva" if others else True,
            "bias": "none",
        }

    @classmethod
    def of_peft(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        if any(bool(config.get(flag)) != value for flag, value in cls.peft_flags.items()):
            return None
        peft_format.refuse_unsupported(config, peft_format.WHOLE | _UNSUPPORTED)
        start = str(config.get("init_lora_weights")).lower()
        if start.startswith(_CHANGING_STARTS):
            raise AdapterError(
                f"peft's init_lora_weights = {start!r} changed the base, so the adapter does not fit the original one. "
                "Convert it: peft's save_pretrained with path_initial_model_for_weight_conversion"
            )
        named = isinstance(config.get("target_modules"), list)  # else the names in the file decide
        return {
            "rank": config.get("r", _DEFAULT),
            "alpha": config.get("lora_alpha", _DEFAULT),
            "dropout": config.get("lora_dropout", 0.0),
            "targets": peft_format.roles_of(config) if named else ["all"],
            "start": "eva" if config.get("rank_pattern") else "zero",
        }

    def state_of_peft(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A layer with a scale t of its own (rank_pattern, alpha_pattern) gets it into its B: t B A = s (t/s B) A, with
        the scale s of this method."""
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        if not ranks and not alphas:
            return state
        root = 0.5 if config.get("use_rslora") else 1.0
        usual = config.get("r", _DEFAULT), config.get("lora_alpha", _DEFAULT)
        scaled = dict(state)
        try:
            for name, tensor in state.items():
                path, is_B, _ = name.removeprefix(PREFIX).partition(".lora_B.")
                if is_B:
                    rank, alpha = _by_pattern(ranks, path, usual[0]), _by_pattern(alphas, path, usual[1])
                    if rank != tensor.shape[1]:
                        raise ValueError(f"{path} has the rank {tensor.shape[1]}")
                    scaled[name] = tensor * (alpha / rank**root / self.scale)
        except (TypeError, ArithmeticError, ValueError, AttributeError, re.error) as error:
            raise AdapterError(f"peft's rank_pattern = {ranks!r} with alpha_pattern = {alphas!r}: {error}") from None
        return scaled


def _by_pattern(values: Mapping[str, float], path: str, otherwise: float) -> float:
    """The value of the first pattern that a layer's name, or an end of it behind a dot, is; as peft matches them."""
    return next((value for pattern, value in values.items() if re.match(rf"(.*\.)?({pattern})$", path)), otherwise)


_DEFAULT = 8  # peft's, of r and of lora_alpha
_CHANGING_STARTS = ("pissa", "corda", "olora", "loftq", "lora_ga")  # these take their start out of the base's weights
_UNSUPPORTED = {
    "lora_bias": False,
    "use_qalora": False,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
