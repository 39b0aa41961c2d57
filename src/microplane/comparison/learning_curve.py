"""Would more rows help? From the scores with a quarter, half and all of the training rows to those with twice as many.

A method's error after training on n of N rows falls like a power law towards a floor (arXiv 1712.00409, 2103.16716),

    error(n) = error(N) + slope (x^-b - 1) / b     x = n / N, 0 <= b <= 1; at b = 0 slope times -log x

which is linear in the logarithm of the rows at b = 0, and has the floor error(N) - slope / b else. For a given b it is
a linear fit; b is the one of a grid that fits best. The interval is that of a bootstrap: test rows are drawn anew, the
same for all sizes, and each size's mean moves by what seeds differ by, as Student's t of the few that there are. Each
sample is fitted with a b of its own, so that what three sizes leave open of the curve's shape is in the interval too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microplane.comparison.plan import Plan
from microplane.comparison.scoring import Metric
from microplane.comparison.search import PARTS
from microplane.comparison.statistics import LEVEL, Array, Interval, Scores, interval
from microplane.comparison.table import Answers, interval_of
from microplane.comparison.trials import Outcome
from microplane.comparison.verdict import Words

EXPONENTS = tuple(number / 20 for number in range(21))
SAMPLES = 2_000
AT_ONCE = 100  # samples that are drawn together
DRAWN = 40  # points of the fitted line
SAME = "with {few:,} training rows it scores the same as with all {many:,}, on every test row."
ONE_SEED = " With one seed of each size, what seeds differ by is not in this: it may be far wider."


@dataclass(frozen=True)
class Fit:
    """Curves of error by x, the share of the rows; of B samples at once.

    Args:
        all_rows: (B,) the error at x = 1.
        slopes: (B,) by which it falls there, for each e-fold of the rows.
        exponents: (B,) b.
        most: no error is larger.
    """

    all_rows: Array
    slopes: Array
    exponents: Array
    most: float = math.inf

    def at(self, share: float) -> Array:
        """(B,) the error with so many times the rows, within what an error can be."""
        found: Array = np.clip(self.all_rows + self.slopes * _falls(share, self.exponents), 0.0, self.most)
        return found


def fitted(shares: Sequence[float], errors: Array, most: float = math.inf) -> Fit:
    """The curve of least squares through each sample.

    Args:
        shares: (K,) of all rows, K >= 2.
        errors: (B, K).
        most: no error is larger.
    """
    best = np.full((4, len(errors)), np.inf)  # squares, error at 1, slope, exponent
    for exponent in EXPONENTS:
        design = np.stack([np.ones(len(shares)), [_falls(share, exponent) for share in shares]], axis=1)  # (K, 2)
        solved, *_ = np.linalg.lstsq(design, errors.T, rcond=None)  # (2, B)
        squares = ((design @ solved - errors.T) ** 2).sum(0)
        better = squares < best[0] - 1e-15  # of equal ones the straighter line
        best[:, better] = np.stack([squares, *solved, np.full(len(errors), exponent)])[:, better]
    return Fit(best[1], best[2], best[3], most)


def _falls(share: Any, exponent: Any) -> Any:
    """(x^-b - 1) / b, and its limit -log x."""
    power = np.maximum(exponent, 1e-9)
    return np.expm1(-power * np.log(share)) / power


@dataclass(frozen=True)
class Curve:
    """What scores come to with more rows.

    Args:
        gain: what twice the rows would bring; more is better, whatever the metric.
        fit: the curve through the means.
        seeded: whether what seeds differ by is in the interval; of one seed of each size it is not known.
    """

    gain: Interval
    fit: Fit
    seeded: bool = True

    @property
    def told(self) -> bool:
        """Whether it is certain that more rows would change anything."""
        return self.gain.low > 0 or self.gain.high < 0


def extrapolated(shares: Sequence[float], errors: Sequence[Scores], seed: int = 0) -> Curve:
    """From the errors of all rows with all seeds, for each number of training rows, to twice the last number.

    Args:
        shares: of all training rows, the last of them 1.
        errors: on the same test rows; less is better.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    by_row = np.stack([one.values.mean(0) for one in errors], axis=1)  # (R, K)
    rows, means = len(by_row), by_row.mean(0)
    chunks = [rng.multinomial(rows, np.full(rows, 1 / rows), AT_ONCE) @ by_row for _ in range(SAMPLES // AT_ONCE)]
    samples = np.concatenate(chunks) / rows  # (B, K)
    freedom = sum(len(one.values) - 1 for one in errors)
    if freedom:  # sizes are taken to have seeds that differ alike: of each there are too few to tell
        pooled = sum((len(one.values) - 1) * one.between_seeds for one in errors) / freedom
        spread = np.sqrt([pooled / len(one.values) for one in errors])
        scale = np.sqrt(freedom / rng.chisquare(freedom, (len(samples), 1)))
        samples += rng.standard_normal(samples.shape) * scale * spread
    most = 1.0 if errors[0].share else math.inf
    many, one = fitted(shares, samples, most), fitted(shares, means[None], most)
    low, high = np.quantile(many.at(1) - many.at(2), [LEVEL / 2, 1 - LEVEL / 2])
    return Curve(Interval(float((one.at(1) - one.at(2))[0]), float(low), float(high)), one, freedom > 0)


def learning_curve(
    plan: Plan, metric: Metric, method: str, parts: Mapping[int, Sequence[Outcome]], whole: Sequence[Outcome]
) -> dict[str, Any]:
    """What `comparison.json` says of it.

    Args:
        method: that was trained on parts of the rows.
        parts: its runs by percent of the rows.
        whole: its runs on all rows.
    """
    told: dict[str, Any] = {"method": method, "rows": plan.counts["train"], "twice": None, "fit": None}
    done = {percent: [run for run in runs if run.ok] for percent, runs in {**parts, 100: whole}.items()}
    if failed := next((runs[0] for percent, runs in parts.items() if not done[percent]), None):
        share = failed.trial.percent
        sentence = (
            f"Whether more rows would help cannot be told: no run on {share}% of them succeeded ({failed.reason})."
        )
        return told | {"points": [], "sentence": sentence, "told": False}
    percents = [*PARTS, 100]
    rows = [int(done[percent][0].result["data"]["train_rows"]) for percent in percents]
    scores = _scores(metric, [done[percent] for percent in percents])
    shares = [count / rows[-1] for count in rows]
    points = [
        {"rows": count, "percent": percent, **interval_of(interval(one)), "by_seed": one.of_seeds}
        for count, percent, one in zip(rows, percents, scores, strict=True)
    ]
    if not any((one.values.mean(0) - scores[-1].values.mean(0)).any() for one in scores):
        same = SAME.format(few=rows[0], many=rows[-1])
        sentence = f"Whether more rows would help {method} cannot be told: {same}"
        return told | {"points": points, "sentence": sentence, "told": False}
    curve = extrapolated(shares, [_error(metric, one) for one in scores])
    drawn = np.geomspace(shares[0], 2, DRAWN)
    line = [[float(share * rows[-1]), _score(metric, float(curve.fit.at(share)[0]))] for share in drawn]
    ends = [_score(metric, float(curve.fit.at(1)[0]) - gain) for gain in (curve.gain.low, curve.gain.high)]
    return told | {
        "points": points,
        "fit": {"exponent": float(curve.fit.exponents[0]), "line": line},
        "twice": {"rows": 2 * rows[-1], "gain": interval_of(curve.gain), "score": line[-1][1], "between": sorted(ends)},
        "sentence": _sentence(method, 2 * rows[-1], curve, Words(metric.share)) + ONE_SEED * (not curve.seeded),
        "told": curve.told,
    }


def _scores(metric: Metric, runs: Sequence[Sequence[Outcome]]) -> list[Scores]:
    """Of each size on the rows that all could be judged on."""
    found = [np.array([metric.of(own.said("after"), own.targets) for own in _answers(one)]) for one in runs]
    known = np.isfinite(np.concatenate(found)).all(0)
    return [Scores(values[:, known], share=metric.share) for values in found]


def _answers(runs: Sequence[Outcome]) -> list[Answers]:
    return [Answers.of(run.folder) for run in runs]


def _error(metric: Metric, scores: Scores) -> Scores:
    """As an error, of which less is better; shares of rows that are wrong."""
    return scores if metric.lower else Scores(1 - scores.values, share=metric.share)


def _score(metric: Metric, error: float) -> float:
    return error if metric.lower else 1 - error


def _sentence(method: str, rows: int, curve: Curve, words: Words) -> str:
    gain, twice = curve.gain, f"twice the training rows ({rows:,})"
    scale, form = (100, ".1f") if words.share else (1, ".3g")
    low, high = (f"{scale * end:+{form}}" for end in (gain.low, gain.high))
    if not curve.told:
        unit = " points" if words.share else ""
        return (
            f"Whether more rows would help {method} cannot be told: {twice} would bring between {low} and {high}{unit}."
        )
    verb = "bring" if gain.low > 0 else "cost"
    kind = (" more" if gain.low > 0 else "") if words.share else " less error" if gain.low > 0 else " more error"
    between = " and ".join(f"{scale * abs(end):{form}}" for end in sorted((gain.low, gain.high), key=abs))
    return f"For {method} {twice} would {verb} about {words.gap(gain.value)}{kind}, between {between}."
