"""EVA, arXiv 2410.07170: A is made of the directions in which a layer's inputs vary most, B is zero.

The directions come from an incremental principal component analysis over the batches, until they turn no more. Ranks
go where they explain most: the best (number of layers) x (rank) directions of all layers are kept, at most rho x rank
of one layer. Each layer keeps at least one here, where peft would take a layer out of the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.errors import TrainingError
from microplane.methods.init.factors import top_singular, wide
from microplane.models.contract import in_eval_mode

PASSES = 10  # over the rows, at most


class Components:
    """The largest principal components of rows that come in batches. Shapes: n rows, D width, k components."""

    def __init__(self, count: int):
        self.count = count
        self.seen = 0
        self.turned = True  # whether the last batch turned any of the components by more than tau allows
        self.mean, self.squares = torch.zeros(()), torch.zeros(())  # (D,), and the sum of squared distances from it
        self.values, self.directions = torch.zeros(0), torch.zeros(0)  # (k,) and (k, D)

    @torch.no_grad()
    def add(self, rows: Tensor, tau: float) -> None:
        """One step of incremental PCA (Ross et al. 2008): what is known, the centred rows, and the means' distance."""
        rows = wide(rows)
        if len(rows) < self.count:
            return
        mean, n = rows.mean(0), len(rows)
        parts, centred = [rows - mean], rows - mean
        self.squares = self.squares + centred.square().sum()
        if self.seen:
            between = (self.seen / (self.seen + n) * n) ** 0.5 * (self.mean - mean)
            parts = [self.values.unsqueeze(1) * self.directions, centred, between.unsqueeze(0)]
            self.squares = self.squares + between.square().sum()
        _, values, V = top_singular(torch.cat(parts), self.count)
        before, self.values, self.directions = self.directions, values, V.t()
        cosines = F.cosine_similarity(self.directions, before).abs() if self.seen else torch.zeros(1)
        self.turned = bool((cosines < tau).any())
        self.mean = (self.mean * self.seen + mean * n) / (self.seen + n)
        self.seen += n

    def explained(self) -> Tensor:
        """The share of the rows' variance that each direction has, (k,)."""
        return self.values.square() / self.squares


def input_directions(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    losses: Sequence[Callable[[], Tensor]],
    rank: int,
    rho: float,
    tau: float,
) -> dict[str, Tensor]:
    """A (r, in) with orthonormal rows for each module; the r differ, and their mean is `rank`."""
    found, leader = _analyse(model, modules, losses, rank, rho, tau)
    ranks = share_ranks({name: found[leader[name]].explained() for name in modules}, rank)
    return {name: found[leader[name]].directions[: ranks[name]] for name in modules}


def _analyse(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    losses: Sequence[Callable[[], Tensor]],
    rank: int,
    rho: float,
    tau: float,
) -> tuple[dict[str, Components], dict[str, str]]:
    """Components by the name of the first module with an input, and each module's first; q, k and v share theirs."""
    found: dict[str, Components] = {}
    leader: dict[str, str] = {}
    last: list[Any] = [None, ""]  # the input that was seen last, kept so that its identity stays its own, and by whom

    def watch(name: str, module: nn.Module, x: Tensor) -> None:
        if x is not last[0]:
            last[:] = x, leader.setdefault(name, name)
            width = min(round(rho * rank), x.shape[-1])
            components = found.setdefault(leader[name], Components(width))
            if leader[name] == name and components.turned:
                components.add(x.flatten(0, -2), tau)
        leader.setdefault(name, last[1])

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: watch(name, module, args[0]))
        for name, module in modules.items()
    ]
    try:
        with in_eval_mode(model), torch.no_grad():
            for _ in range(PASSES):
                for loss in losses:
                    loss()
                if not any(components.turned for components in found.values()):
                    break
    finally:
        for hook in hooks:
            hook.remove()
    if short := [name for name in modules if name not in leader or not found[leader[name]].seen]:
        raise TrainingError(
            f"method.start = eva saw too few tokens at {short[0]}: it needs {round(rho * rank)} in a batch. Raise "
            "method.start_rows or train.micro_tokens, or choose a smaller method.rank"
        )
    return found, leader


def share_ranks(explained: Mapping[str, Tensor], rank: int) -> dict[str, int]:
    """Ranks whose sum is `rank` times their number, to the directions that explain most; at least 1 each.

    Args:
        explained: of each layer, the share of variance of its directions, largest first.
    """
    ranked = sorted(
        ((float(share), name) for name, shares in explained.items() for share in shares[1:]),
        key=lambda pair: -pair[0],
    )
    ranks = dict.fromkeys(explained, 1)
    for _, name in ranked[: (rank - 1) * len(explained)]:
        ranks[name] += 1
    return ranks
