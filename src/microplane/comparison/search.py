"""Which learning rate suits a method: the same number of trials, of the same lengths, for each.

First a grid around the method's own rate, at a quarter of the length, then two more rates: beyond an edge where the
best lies on one, else between the best and its better neighbour. The two best then run at half the length, and the
better of these is taken. Each run has its own whole schedule, however short. What is looked at is the validation loss.

Pure functions of what was tried so far: a search that goes on after a kill asks for the same trials again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

FACTOR = 10**0.5  # between neighbours of the grid
GRID = (0, -1, 1, -2, 2)  # powers of it, the method's own rate first: if that cannot be trained, none can
MORE = 2  # rates behind the grid
BEST = 2  # rates that go on at half the length
PARTS = (25, 50)  # percent of the training rows, for the learning curve

Losses: TypeAlias = Mapping[float, float]  # validation loss by rate; infinite of a run that failed
Edge: TypeAlias = Literal["lowest", "highest"]


def rates(default: float, short: Losses) -> list[float]:
    """The rates to be tried at a quarter of the length, as far as they can be told by now.

    Args:
        default: the method's own rate.
        short: what came of those that were tried.
    """
    grid = [_rounded(default * FACTOR**power) for power in GRID]
    if any(rate not in short for rate in grid):
        return grid
    known = {rate: short[rate] for rate in grid}
    tried = list(grid)
    for _ in range(MORE):
        tried.append(further(known))
        if tried[-1] not in short:
            break
        known[tried[-1]] = short[tried[-1]]
    return tried


def further(losses: Losses) -> float:
    """One more rate: beyond the edge where the best lies on one, else between it and its better neighbour."""
    best, order = best_of(losses), sorted(losses)
    if (edge := edge_of(losses)) is not None:
        return _rounded(best * FACTOR if edge == "highest" else best / FACTOR)
    place = order.index(best)
    beside = min(order[place - 1], order[place + 1], key=lambda rate: (losses[rate], rate))
    return _rounded(math.sqrt(best * beside))


def finalists(losses: Losses) -> list[float]:
    """The best of all that were tried, the best first."""
    return sorted(losses, key=lambda rate: (losses[rate], rate))[:BEST]


def best_of(losses: Losses) -> float:
    return min(losses, key=lambda rate: (losses[rate], rate))


def edge_of(losses: Losses, rate: float | None = None) -> Edge | None:
    """Whether a rate, or else the best one, is the lowest or highest that was tried: a better one may lie beyond."""
    rate = best_of(losses) if rate is None else rate
    return "lowest" if rate == min(losses) else "highest" if rate == max(losses) else None


def _rounded(rate: float) -> float:
    """As it is written on a command line."""
    return float(f"{rate:.3g}")


@dataclass(frozen=True)
class Lengths:
    """Optimizer steps of the runs of each stage.

    Args:
        shares: of the training rows that each part of them holds, by percent.
    """

    final: int
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def short(self) -> int:
        return max(1, math.ceil(self.final / 4))

    @property
    def half(self) -> int:
        return max(1, math.ceil(self.final / 2))

    @property
    def search(self) -> int:
        """Of a method's whole search."""
        return (len(GRID) + MORE) * self.short + BEST * self.half

    def part(self, percent: int) -> int:
        """Of a run on so much of the training rows: as many passes over them as the final runs make."""
        share = self.shares.get(str(percent), percent / 100)
        return max(1, math.ceil(round(self.final * share, 6)))

    def of_method(self, seeds: int) -> int:
        return self.search + seeds * self.final


def longest(steps: float, all_steps: Callable[[int], int], most: int) -> int:
    """Steps of a final run, so that all trials together take no more than so many.

    Args:
        all_steps: what they take, by the steps of a final run.
        most: no longer than this, whatever would be possible.
    """
    return bisect_right(range(1, most + 1), steps, key=all_steps)
