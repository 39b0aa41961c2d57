"""Which method is better, if any is: judged by all differences at once, and said in words.

Never a winner out of noise: every pair of methods, and every method against the best baseline, is one claim (as many as
there are baselines, where the method is below), and all claims together are wrong in at most one comparison of twenty
(Holm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from microplane.comparison.statistics import (
    LEVEL,
    Difference,
    Interval,
    Needed,
    Scores,
    difference,
    holm,
    interval,
    needed,
    typical,
    visible_from,
)


@dataclass(frozen=True)
class Claim:
    """That `one` scores otherwise than `other`."""

    one: str
    other: str
    difference: Difference  # of `one`, less that of `other`
    p: float  # adjusted for all claims

    @property
    def holds(self) -> bool:
        return self.p < LEVEL

    def seen_from(self, name: str) -> Claim:
        """The same with this method as the first of the two."""
        if name == self.one:
            return self
        found = self.difference
        turned = Difference(-found.value, -found.high, -found.low, found.p, found.identical, found.spread)
        return Claim(self.other, self.one, turned, self.p)


@dataclass(frozen=True)
class Judgement:
    """All that can be said of methods that answered the same rows.

    Args:
        methods: scores by name, in the order in which they were named.
        baselines: what needs no training, by name.
        costs: of each method; of those that cannot be told apart the cheapest is advised.
        lower: whether less is better.
    """

    methods: Mapping[str, Scores]
    baselines: Mapping[str, Scores]
    costs: Mapping[str, float]
    lower: bool = False

    @cached_property
    def ranking(self) -> list[str]:
        """The best first."""
        return sorted(self.methods, key=lambda name: -self._sign * self.methods[name].mean)

    @cached_property
    def baseline(self) -> str | None:
        """The best of the baselines."""
        sign = self._sign
        return max(self.baselines, key=lambda name: sign * self.baselines[name].mean) if self.baselines else None

    @cached_property
    def claims(self) -> list[Claim]:
        pairs = [(one, other, self.methods[other]) for one, other in combinations(self.methods, 2)]
        if self.baseline is not None:
            pairs += [(name, self.baseline, self.baselines[self.baseline]) for name in self.methods]
        found = [difference(self.methods[one], scores) for one, _, scores in pairs]
        adjusted = holm([self._p(each, other) for each, (_, other, _) in zip(found, pairs, strict=True)])
        claims = zip(pairs, found, adjusted, strict=True)
        return [Claim(one, other, each, p) for (one, other, _), each, p in claims]

    def _p(self, found: Difference, other: str) -> float:
        """The best baseline was picked on the same rows, as the luckiest of several: to be below it is one claim for
        each of them (Bonferroni). To be above it is to be above all, which needs no correction (Berger 1982)."""
        below = other == self.baseline and self._sign * found.value < 0
        return min(1.0, found.p * len(self.baselines)) if below else found.p

    def claim(self, one: str, other: str) -> Claim:
        """How `one` differs from `other`, a method or the best baseline."""
        return next(claim for claim in self.claims if {claim.one, claim.other} == {one, other}).seen_from(one)

    def is_better(self, one: str, other: str) -> bool:
        """Whether that is certain enough to be said."""
        claim = self.claim(one, other)
        return claim.holds and self._sign * claim.difference.value > 0

    @cached_property
    def leaders(self) -> list[str]:
        """The best method and those that cannot be told apart from it, in the order of their names' mention."""
        best = self.ranking[0]
        return [name for name in self.methods if name == best or not self.is_better(best, name)]

    @cached_property
    def advised(self) -> str:
        """The cheapest of them."""
        return min(self.leaders, key=lambda name: self.costs[name])

    @cached_property
    def beats_baseline(self) -> bool:
        return self.baseline is None or any(self.is_better(name, self.baseline) for name in self.leaders)

    @cached_property
    def visible(self) -> float | None:
        """The smallest difference between two of the leaders, or all methods, that would be found."""
        among = self.leaders if len(self.leaders) > 1 else list(self.methods)
        spreads = [self.claim(*pair).difference.spread for pair in combinations(among, 2)]
        return visible_from(typical(spreads), len(self.claims)) if spreads else None

    def needed_to_tell(self, one: str, other: str) -> Needed:
        found = self.claim(one, other).difference
        return needed(found.spread, abs(found.value), len(self.claims))

    @property
    def rows(self) -> int:
        return int(next(iter(self.methods.values())).values.shape[1])

    @property
    def seeds(self) -> int:
        return max(len(scores.values) for scores in self.methods.values())

    @property
    def _sign(self) -> int:
        return -1 if self.lower else 1


def plain(value: float, sign: str = "") -> str:
    """With three digits, or all before the point: `0.0312`, `24,810`."""
    return f"{value:{sign},.0f}" if 1000 <= abs(value) < 1e12 else f"{value:{sign}.3g}"


@dataclass(frozen=True)
class Words:
    """How figures of a metric are said: shares as percentages, and their differences as points."""

    share: bool = True

    def figure(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self.share else plain(value)

    def gap(self, value: float) -> str:
        return f"{abs(100 * value):.1f} points" if self.share else plain(abs(value))

    def range(self, found: Interval) -> str:
        return f"{self.figure(found.low)} to {self.figure(found.high)}"

    def gaps(self, found: Interval) -> str:
        low, high = sorted((abs(found.low), abs(found.high))) if found.low * found.high > 0 else (found.low, found.high)
        return f"{100 * low:.1f} to {100 * high:.1f}" if self.share else f"{plain(low)} to {plain(high)}"


def sentences(judgement: Judgement, words: Words) -> list[str]:
    """The answer, its first line first."""
    said = []
    if not judgement.beats_baseline:
        said.append(_beaten(judgement, words))
    if len(judgement.methods) == 1:
        said.append(_alone(judgement, words))
    elif len(judgement.leaders) == 1:
        said.append(_winner(judgement, words))
    else:
        said += _undecided(judgement, words)
    if judgement.seeds < 2:
        said.append("With one seed nothing is known of how much seeds differ: all intervals cover other rows alone.")
    return said


def _beaten(judgement: Judgement, words: Words) -> str:
    baseline, best = judgement.baseline, judgement.ranking[0]
    assert baseline is not None
    worse = all(judgement.is_better(baseline, name) for name in judgement.methods)
    verb = "does worse than" if worse else "is not shown to beat"
    own, theirs = judgement.methods[best].mean, judgement.baselines[baseline].mean
    return (
        f"Fine-tuning {verb} {baseline}, which needs none, on these {judgement.rows:,} rows: "
        f"{words.figure(theirs)}, and the best method ({best}) {words.figure(own)}."
    )


def _alone(judgement: Judgement, words: Words) -> str:
    (name, scores), *_ = judgement.methods.items()
    found = interval(scores)
    return f"{name} scores {words.figure(found.value)} ({words.range(found)}) on {judgement.rows:,} rows."


def _winner(judgement: Judgement, words: Words) -> str:
    best, second, *_ = judgement.ranking
    found, gap = interval(judgement.methods[best]), judgement.claim(best, second).difference
    return (
        f"{best} is the best: {words.figure(found.value)} ({words.range(found)}) on {judgement.rows:,} rows, "
        f"{words.gap(gap.value)} ({words.gaps(gap)}) better than {second}, the next."
    )


def _undecided(judgement: Judgement, words: Words) -> list[str]:
    leaders, visible = judgement.leaders, judgement.visible
    assert visible is not None
    several = f"These {len(leaders)}" if len(leaders) > 2 else "These two"
    seeds = "one seed" if judgement.seeds == 1 else f"{judgement.seeds} seeds"
    below = f"a difference below {words.gap(visible)} is invisible here"
    seen = "no difference can be seen here" if not visible or (words.share and visible >= 1) else below
    said = [
        f"{several} cannot be told apart on {judgement.rows:,} rows with {seeds} "
        f"({seen}): {', '.join(leaders)}. "
        f"Take the cheapest: {judgement.advised} (it trains the fewest weights)."
    ]
    if behind := [name for name in judgement.ranking if name not in leaders]:
        said.append(f"{_listed(behind)} {'does' if len(behind) == 1 else 'do'} worse than {judgement.ranking[0]}.")
    best = judgement.ranking[0]
    second = next(name for name in judgement.ranking[1:] if name in leaders)
    found = judgement.claim(best, second).difference
    if found.identical or not found.value:
        said.append(f"{best} and {second} {'score alike on every row' if found.identical else 'score the same'}.")
        return said
    need, gap = judgement.needed_to_tell(best, second), words.gap(found.value)
    ways = [f"about {need.rows:,} test rows"] if need.rows else []
    ways += [f"{need.seeds} seeds"] if need.seeds and need.seeds > judgement.seeds else []
    what = " or ".join(ways) or "more rows and more seeds than anybody would spend"
    said.append(f"To tell {best} from {second}, if they differ by the {gap} seen here, would take {what}.")
    return said


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
