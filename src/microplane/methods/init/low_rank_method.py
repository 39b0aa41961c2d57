"""What the methods have in common whose low-rank pair can start from something else than zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from microplane.methods.adapted_linear import adapted_layers
from microplane.methods.init import check_rank, init_factors
from microplane.methods.linear_method import LinearMethod


class LowRankMethod(LinearMethod):
    """Its adapted layers have `set_factors`; see methods/init."""

    first_rank_knob: ClassVar[str] = "rank"  # the knob that says what rank each layer's pair has when training begins

    start: Literal["zero", "pissa", "olora", "eva", "loftq", "lora_ga"] = Field(
        "zero", description="the pair at first; eva and lora_ga look at training rows, loftq is for a quantised base"
    )
    start_rows: int = Field(64, ge=1, description="training rows that the starts eva and lora_ga look at")
    eva_rho: float = Field(
        2.0, ge=1, description="start eva: a layer gets at most rho times the rank; 1 keeps ranks equal"
    )
    eva_tau: float = Field(0.99, gt=0, le=1, description="start eva: cosine from which a direction counts as settled")
    ga_gamma: float = Field(16.0, gt=0, description="start lora_ga: the larger, the smaller the first pair")

    @property
    def first_rank(self) -> int:
        return int(getattr(self, self.first_rank_knob))

    def attach(self, model: nn.Module) -> None:
        """Raises: ConfigError, where the start cannot give a layer so many directions."""
        super().attach(model)
        for site, module in adapted_layers(model, self.layer):
            check_rank(self.start, self.first_rank, self.first_rank_knob, site, module.in_features, module.out_features)

    def idle_knobs(self) -> dict[str, str]:
        of_starts = {
            "start_rows": ("eva", "lora_ga"),
            **dict.fromkeys(("eva_rho", "eva_tau"), ("eva",)),
            "ga_gamma": ("lora_ga",),
        }
        return super().idle_knobs() | {
            name: f"it belongs to method.start={' or '.join(starts)}, and method.start = {self.start!r}. Leave it out"
            for name, starts in of_starts.items()
            if self.start not in starts
        }

    @property
    def init_rows(self) -> int:
        return self.start_rows if self.start in ("eva", "lora_ga") else 0

    def init_from_data(
        self,
        model: nn.Module,
        losses: Sequence[Callable[[], Tensor]],
        weights: Callable[[str], Tensor] | None = None,
    ) -> None:
        init_factors(self, model, dict(adapted_layers(model, self.layer)), losses, weights)
