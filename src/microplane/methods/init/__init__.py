"""What a low-rank pair starts from, for every method that has one: zero, PiSSA, OLoRA, EVA, LoftQ or LoRA-GA.

zero     A random, B zero                                      the function of the base
pissa    the largest singular triplets of W                    of the base: counted from the start
olora    the first columns of W's QR decomposition             of the base: counted from the start
lora_ga  singular vectors of the gradient, from data           of the base: counted from the start
eva      A the largest directions of the layer's inputs        of the base: B is zero
loftq    the largest singular triplets of W - Q                nearer to the original W than its quantised Q
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from microplane.errors import ConfigError
from microplane.methods.init.eva import input_directions
from microplane.methods.init.factors import loftq, lora_ga, olora, pissa
from microplane.methods.init.gradients import weight_gradients


class Knobs(Protocol):
    """What a start reads of its method."""

    @property
    def start(self) -> str: ...
    @property
    def first_rank(self) -> int: ...
    @property
    def eva_rho(self) -> float: ...
    @property
    def eva_tau(self) -> float: ...
    @property
    def ga_gamma(self) -> float: ...


class Pair(Protocol):
    """What a start sees of an adapted linear layer with a pair s B A, whatever method it belongs to."""

    base: nn.Linear
    scale: float

    def set_factors(self, A: Tensor, B: Tensor, relative_to_start: bool) -> None: ...


def check_rank(start: str, rank: int, knob: str, site: str, in_features: int, out_features: int) -> None:
    """Raise a ConfigError where a start cannot give so many directions."""
    smaller = min(in_features, out_features)
    most = {"zero": rank, "eva": in_features, "lora_ga": smaller // 2}.get(start, smaller)
    if rank > most:
        raise ConfigError(
            f"method.{knob} = {rank} is too large for method.start = {start}: {site} is {out_features} x {in_features} "
            f"and gives {most} directions at most. Choose a smaller rank, fewer targets, or the start zero"
        )


def init_factors(
    knobs: Knobs,
    model: nn.Module,
    pairs: Mapping[str, nn.Module],
    losses: Sequence[Callable[[], Tensor]],
    weights: Callable[[str], Tensor] | None,
) -> None:
    """Set the pairs to what `knobs.start` says; arguments as of `Method.init_from_data`, `pairs` by dotted name."""
    sites: Mapping[str, Pair] = pairs  # type: ignore[assignment]
    if knobs.start in ("pissa", "olora"):
        decompose = {"pissa": pissa, "olora": olora}[knobs.start]
        for pair in sites.values():
            pair.set_factors(
                *decompose(pair.base.weight.detach(), knobs.first_rank, pair.scale), relative_to_start=True
            )
    if knobs.start == "loftq":
        _init_loftq(knobs.first_rank, sites, weights)
    if knobs.start == "eva":
        for site, A in input_directions(model, pairs, losses, knobs.first_rank, knobs.eva_rho, knobs.eva_tau).items():
            B = A.new_zeros(sites[site].base.out_features, len(A))
            sites[site].set_factors(A, B, relative_to_start=False)
    if knobs.start == "lora_ga":
        for site, gradient in weight_gradients(model, pairs, losses):
            sites[site].set_factors(*lora_ga(gradient, knobs.first_rank, knobs.ga_gamma), relative_to_start=True)


def _init_loftq(rank: int, sites: Mapping[str, Pair], weights: Callable[[str], Tensor] | None) -> None:
    plain = [site for site, pair in sites.items() if isinstance(pair.base, nn.Linear)]
    if plain or weights is None:
        what = f"{plain[0]} is not" if plain else "the weights as they were before are not at hand"
        raise ConfigError(
            f"method.start = loftq makes up for what quantising the base has lost, but {what}"
            f"{' quantised' if plain else ''}. Quantise the base, or choose another start: zero, pissa, olora, eva"
        )
    for site, pair in sites.items():
        pair.set_factors(*loftq(weights(site), pair.base.weight.detach(), rank, pair.scale), relative_to_start=False)
