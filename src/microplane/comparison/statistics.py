"""What a few seeds and a few hundred rows can say of methods: intervals, differences, and what is too small to be seen.

A score belongs to a method, a seed and a row. Rows are drawn from all rows that there could be, seeds from all seeds,
and all methods answer the same rows. With S seeds and R rows the mean over both varies by (crossed random effects;
Searle, Casella and McCulloch, "Variance Components", 4.7)

    var(rows) / R  +  var(seeds) / S

where var(rows) is that of the rows' means over the seeds, in which the noise of single answers is contained, and
var(seeds) what the seeds' means differ by beyond that noise. Three seeds tell little of their own variance: intervals
are Student's t, with the degrees of freedom of Satterthwaite (1946), which then are few.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from microplane.errors import ConfigError

LEVEL = 0.05  # of intervals, and of all claims of a comparison together
POWER = 0.8  # how often a difference must be found to count as visible
MANY = 200  # degrees of freedom from which Student's t is the normal distribution
MOST_ROWS, MOST_SEEDS = 1_000_000, 50  # beyond which nobody goes to tell two methods apart

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Scores:
    """What one method scored on each row with each seed.

    Args:
        values: (S, R), without NaN; one seed for what does not depend on any, such as a baseline.
        seeded: whether it could have come out differently with other seeds.
        share: whether each score lies in 0..1.
        others: methods with more seeds, by which it is judged what the only one that is left may differ by.
    """

    values: Array
    seeded: bool = True
    share: bool = True
    others: tuple[Scores, ...] = ()

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def of_seeds(self) -> list[float]:
        """The mean of each seed."""
        return [float(mean) for mean in self.values.mean(1)]

    @property
    def noise(self) -> float:
        """The variance of a single answer that neither its row nor its seed explains."""
        seeds, rows = self.values.shape
        if seeds < 2 or rows < 2:
            return 0.0
        rest = self.values - self.values.mean(0) - self.values.mean(1, keepdims=True) + self.values.mean()
        return float((rest**2).sum() / ((seeds - 1) * (rows - 1)))

    @property
    def between_seeds(self) -> float:
        """The variance of the seeds' means, with the noise of their answers."""
        return float(self.values.mean(1).var(ddof=1)) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Spread:
    """What a mean over R rows and S seeds, or the difference of two such means, varies by.

    Args:
        rows: variance of a row's mean over the seeds.
        noise: of a single answer; 1/S of it is in `rows`.
        seeds: variance from seed to seed beyond that noise.
        doubtful: the same with the noise, for so uncertain is the estimate.
        freedom: degrees of freedom of that estimate; 0 where there was only one seed.
        count: R and S.
    """

    rows: float
    noise: float
    seeds: float
    doubtful: float
    freedom: float
    count: tuple[int, int]

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.rows / self.count[0] + self.seeds / self.count[1])

    @property
    def degrees(self) -> float:
        """Satterthwaite's degrees of freedom of the standard error."""
        rows, seeds = self.count
        doubt = (self.rows / rows) ** 2 / max(rows - 1, 1)
        doubt += (self.doubtful / seeds) ** 2 / self.freedom if self.freedom else 0.0
        return max(1.0, self.error**4 / doubt) if doubt else math.inf

    def at(self, rows: int, seeds: int) -> Spread:
        """What it would be with so many rows and seeds."""
        had_rows, had_seeds = self.count
        of_rows = max(self.rows - self.noise / had_seeds, 0.0) + self.noise / seeds
        doubtful = max(self.doubtful - self.noise / had_rows, 0.0) + self.noise / rows
        freedom = self.freedom * max(seeds - 1, 1) / max(had_seeds - 1, 1)
        return replace(self, rows=of_rows, doubtful=doubtful, freedom=freedom, count=(rows, seeds))


def typical(spreads: Sequence[Spread]) -> Spread:
    """The mean of several, which were measured on the same rows."""
    parts = ("rows", "noise", "seeds", "doubtful", "freedom")
    means = {name: float(np.mean([getattr(spread, name) for spread in spreads])) for name in parts}
    return Spread(**means, count=spreads[0].count)


@dataclass(frozen=True)
class Interval:
    """A figure, and between what it lies in 19 of 20 cases."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """What one method scores more than another."""

    p: float  # of a difference as large as this between two that are equal
    identical: bool  # they differ on no row
    spread: Spread


def interval(scores: Scores) -> Interval:
    """The mean over rows and seeds, with an interval that holds for other rows and other seeds."""
    spread = _spread([scores], scores.values.mean(0), (0.0, 1.0, 2.0) if scores.share else None)
    half = _within(spread) * spread.error
    low, high = scores.mean - half, scores.mean + half
    return Interval(scores.mean, max(low, 0.0), min(high, 1.0)) if scores.share else Interval(scores.mean, low, high)


def difference(one: Scores, other: Scores) -> Difference:
    """What `one` scores more than `other` on the same rows."""
    by_row = one.values.mean(0) - other.values.mean(0)
    value, identical = float(by_row.mean()), not by_row.any()
    spread = _spread([one, other], by_row, (-1.0, 1.0, 0.5) if one.share and other.share else None)
    half = _within(spread) * spread.error
    if identical:  # a test of nothing would divide by nothing, or call equal what was never seen to differ
        p = 1.0
    elif spread.error:
        p = 2 * float(_student().sf(abs(value) / spread.error, spread.degrees))
    else:  # each row differs by the same
        p = 0.0
    return Difference(value, value - half, value + half, p, identical, spread)


def holm(ps: Sequence[float]) -> list[float]:
    """The p of each of several claims, so that with a bound on them all claims together hold to it (Holm 1979).

    Args:
        ps: without NaN.
    """
    order = sorted(range(len(ps)), key=lambda number: ps[number])
    adjusted, least = [0.0] * len(ps), 0.0
    for place, number in enumerate(order):
        least = max(least, min(1.0, (len(ps) - place) * ps[number]))
        adjusted[number] = least
    return adjusted


def visible_from(spread: Spread, claims: int) -> float:
    """The smallest true difference that is found in `POWER` of all cases, where so many claims are made at once.

    Smaller ones are invisible: they are missed more often. By the noncentral t (Johnson, Kotz and Balakrishnan,
    "Continuous Univariate Distributions", 31), for with few seeds the standard error is itself uncertain. For the same
    reason it is more often too small than too large, and is divided by its own median.
    """
    student, degrees = _student(), spread.degrees
    bound = float(student.isf(LEVEL / 2 / max(claims, 1), degrees))
    if degrees > MANY:
        return (bound + float(student.isf(1 - POWER, degrees))) * spread.error
    from scipy.optimize import brentq
    from scipy.stats import chi2, nct

    shift = brentq(lambda shift: nct.sf(bound, degrees, shift) - POWER, 0.0, 5 * bound)
    return float(shift) * spread.error / math.sqrt(chi2.median(degrees) / degrees)


@dataclass(frozen=True)
class Needed:
    """What would make a difference visible: so many rows with the seeds as they are, or else seeds; None: not even many
    do."""

    rows: int | None
    seeds: int | None


def needed(spread: Spread, size: float, claims: int) -> Needed:
    """What it takes to tell two methods apart that differ by `size`."""
    rows, seeds = spread.count

    def enough(rows: int, seeds: int) -> bool:
        return visible_from(spread.at(rows, seeds), claims) <= size

    if not size:
        return Needed(None, None)
    more_rows = _least(rows, MOST_ROWS, lambda count: enough(count, seeds))
    more_seeds = _least(seeds, MOST_SEEDS, lambda count: enough(rows, count))
    return Needed(more_rows, more_seeds)


def _least(low: int, high: int, enough: Callable[[int], bool]) -> int | None:
    """The least number between two that is enough, if the larger one is."""
    return bisect_left(range(low, high), True, key=enough) + low if enough(high) else None


def _spread(sides: Sequence[Scores], by_row: Array, beside: tuple[float, float, float] | None) -> Spread:
    """Of the mean of `by_row`, which is made of these sides.

    Args:
        beside: two values, and how often each is added to the rows before their variance is taken: no finite number of
            rows shows that none could differ (Agresti and Coull 1998; of differences Agresti and Min 2005).
    """
    rows, seeds = len(by_row), max(len(side.values) for side in sides)
    parts, noise, looked_at = [], 0.0, dict[int, int]()
    for side in sides:
        own = len(side.values)
        noise += seeds * side.noise / own
        known = ((side,) if own > 1 else side.others) if side.seeded else ()
        if known:
            between = float(np.mean([one.between_seeds for one in known]))
            beyond = float(np.mean([max(one.between_seeds - one.noise / rows, 0.0) for one in known]))
            parts.append((beyond / own, between / own, sum(len(one.values) - 1 for one in known)))
            looked_at |= {id(one): len(one.values) - 1 for one in known}
    doubtful = sum(between for _, between, _ in parts)
    squares = sum(between**2 / degrees for _, between, degrees in parts)
    most = float(sum(looked_at.values()))  # less than that of all parts where one is judged by the other
    freedom = min(most, doubtful**2 / squares) if squares else most
    of_seeds = seeds * sum(beyond for beyond, *_ in parts)
    return Spread(_variance(by_row, beside), noise, of_seeds, seeds * doubtful, freedom, (rows, seeds))


def _variance(values: Array, beside: tuple[float, float, float] | None) -> float:
    if beside is None:
        return float(values.var(ddof=1)) if len(values) > 1 else 0.0
    low, high, times = beside
    mean = (values.sum() + times * (low + high)) / (len(values) + 2 * times)
    squares = ((values - mean) ** 2).sum() + times * ((low - mean) ** 2 + (high - mean) ** 2)
    return float(squares / max(len(values) + 2 * times - 1, 1))


def _within(spread: Spread) -> float:
    return float(_student().isf(LEVEL / 2, spread.degrees))


def _student() -> Any:
    """Student's t.

    Raises:
        ConfigError: where scipy is not installed.
    """
    try:
        from scipy.stats import t
    except ImportError:
        raise ConfigError(
            "comparing methods needs the package scipy, which is not installed. "
            "Install it: pip install 'microplane[compare]'"
        ) from None
    return t
