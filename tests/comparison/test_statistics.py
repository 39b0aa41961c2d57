"""Intervals that hold, claims that are true, a right word on what is too small to be seen; on simulated outcomes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from microplane.comparison.statistics import (
    LEVEL,
    POWER,
    Scores,
    Spread,
    difference,
    holm,
    interval,
    needed,
    typical,
    visible_from,
)
from microplane.comparison.table import with_seeds_of_others

# Rows differ in how hard they are for all methods (SHARED) and for one (OWN); seeds flip single answers (NOISE).
SHARED, OWN, NOISE = 1.0, 0.5, 0.5


def outcomes(rng, accuracies, seeds, rows, seed_spread):
    """Right or wrong answers of methods whose true accuracies are known; each seed moves its method's accuracy."""
    hard, whole = rng.normal(0, SHARED, rows), np.sqrt(SHARED**2 + OWN**2 + NOISE**2)
    methods = []
    for accuracy in accuracies:
        own = rng.normal(0, OWN, rows)
        seen = np.clip(accuracy + rng.normal(0, seed_spread, seeds), 0.001, 0.999)
        bar = stats.norm.ppf(seen)[:, None] * whole
        methods.append(Scores((hard + own + rng.normal(0, NOISE, (seeds, rows)) + bar > 0).astype(float)))
    return methods


SIZES = [(300, 3, 0.0), (300, 3, 0.01), (1260, 3, 0.005), (1260, 3, 0.01), (1260, 5, 0.02), (126, 3, 0.01)]


@pytest.mark.parametrize(("rows", "seeds", "spread"), SIZES)
def test_intervals_hold_the_truth_in_19_of_20_comparisons(rows, seeds, spread):
    rng, repetitions, held, own = np.random.default_rng(rows + seeds), 600, 0, 0
    for _ in range(repetitions):
        one, other = outcomes(rng, (0.82, 0.80), seeds, rows, spread)
        found, alone = difference(one, other), interval(one)
        held += found.low <= 0.02 <= found.high
        own += alone.low <= 0.82 <= alone.high
    assert 0.92 <= held / repetitions <= 0.98
    assert 0.92 <= own / repetitions <= 0.98


def test_an_interval_of_rows_alone_would_be_too_narrow():
    """What the seeds add is no luxury: without it the truth is missed far too often."""
    rng, held = np.random.default_rng(5), 0
    for _ in range(200):
        one, other = outcomes(rng, (0.82, 0.80), 3, 1260, 0.02)
        by_row = one.values.mean(0) - other.values.mean(0)
        held += abs(by_row.mean() - 0.02) <= 1.96 * by_row.std(ddof=1) / np.sqrt(len(by_row))
    assert held / 200 < 0.8


def claims(methods):
    pairs = [difference(one, other) for one, other in combinations(methods, 2)]
    return pairs, holm([pair.p for pair in pairs])


@pytest.mark.parametrize(("rows", "seeds", "spread"), SIZES)
def test_equal_methods_are_hardly_ever_told_apart(rows, seeds, spread):
    rng = np.random.default_rng(rows)
    wrong = sum(min(claims(outcomes(rng, [0.8] * 4, seeds, rows, spread))[1]) < LEVEL for _ in range(100))
    assert wrong <= 9  # of 100; more than 9 come of a true 5% in 3 of 100 cases


@pytest.mark.parametrize(("rows", "seeds", "spread"), [(300, 3, 0.0), (1260, 3, 0.005), (1260, 5, 0.01)])
def test_what_is_called_invisible_is_right_within_a_fifth(rows, seeds, spread):
    """The difference that is found in 4 of 5 cases, by trying, lies within a fifth of the one that is stated."""
    rng = np.random.default_rng(rows)

    def stated():
        pairs, _ = claims(outcomes(rng, [0.8] * 4, seeds, rows, spread))
        return visible_from(typical([pair.spread for pair in pairs]), len(pairs))

    size = float(np.median([stated() for _ in range(100)]))

    def found(size):
        accuracies = (0.8 + size / 2, 0.8 - size / 2, 0.8, 0.8)
        return sum(claims(outcomes(rng, accuracies, seeds, rows, spread))[1][0] < LEVEL for _ in range(150)) / 150

    assert found(0.8 * size) < POWER < found(1.2 * size)


@pytest.mark.parametrize(("degrees", "claims"), [(1, 1), (2, 1), (2, 3), (4, 6), (10, 15), (300, 3)])
def test_what_is_stated_in_half_of_all_comparisons_is_found_in_4_of_5(degrees, claims):
    """However few degrees of freedom the standard error has, which then is itself a draw from a wide distribution."""
    rng, count = np.random.default_rng(degrees), 40_000
    errors = np.sqrt(rng.chisquare(degrees, count) / degrees)  # of a true one of 1
    middle = float(np.median(errors)) ** 2
    spread = Spread(rows=0.0, noise=0.0, seeds=3 * middle, doubtful=3 * middle, freedom=degrees, count=(1000, 3))
    assert spread.degrees == pytest.approx(degrees)
    seen = np.abs(visible_from(spread, claims) + rng.normal(size=count)) / errors
    assert np.mean(2 * stats.t.sf(seen, degrees) < LEVEL / claims) == pytest.approx(POWER, abs=0.02)


@pytest.mark.parametrize("spread", [0.0, 0.005])
def test_a_handicap_of_5_points_is_found_where_the_rows_are_said_to_suffice(spread):
    rng, seeds, rows = np.random.default_rng(11), 3, 1260
    suffice = found = 0
    while suffice < 20:
        pairs, adjusted = claims(outcomes(rng, (0.80, 0.75, 0.80), seeds, rows, spread))
        if visible_from(typical([pair.spread for pair in pairs]), len(pairs)) <= 0.05:
            suffice += 1
            found += adjusted[0] < LEVEL and pairs[0].value > 0
    assert found >= 16


def test_what_is_said_to_be_needed_makes_the_difference_visible():
    rng = np.random.default_rng(3)
    one, other = outcomes(rng, (0.82, 0.80), 3, 400, 0.002)
    spread = difference(one, other).spread
    need = needed(spread, 0.03, 1)
    assert need.rows is not None
    assert need.rows > 400
    assert visible_from(spread.at(need.rows, 3), 1) <= 0.03 < visible_from(spread.at(need.rows - 1, 3), 1)
    more = outcomes(rng, (0.83, 0.80), 3, need.rows, 0.002)
    assert visible_from(difference(*more).spread, 1) == pytest.approx(0.03, rel=0.2)


def test_no_number_of_rows_helps_against_seeds():
    rng = np.random.default_rng(4)
    spread = difference(*outcomes(rng, (0.82, 0.80), 3, 1000, 0.04)).spread
    need = needed(spread, 0.06, 1)
    assert need.rows is None
    assert need.seeds is not None
    assert 3 < need.seeds <= 50
    assert needed(spread, 0.0, 1) == (needed(spread, 1e-9, 1))  # nothing tells equal ones apart


def test_the_components_are_those_of_the_analysis_of_variance():
    """Expected mean squares of a crossed design: what went in comes out."""
    rng, rows, seeds = np.random.default_rng(6), 4000, 40
    values = rng.normal(0, 0.3, rows) + rng.normal(0, 0.05, (seeds, 1)) + rng.normal(0, 0.2, (seeds, rows))
    scores = Scores(values, share=False)
    assert scores.noise == pytest.approx(0.04, rel=0.02)
    assert scores.between_seeds == pytest.approx(0.05**2, rel=0.5)
    zero = Scores(np.zeros((1, rows)), seeded=False, share=False)
    spread = difference(scores, zero).spread
    assert spread.rows == pytest.approx(0.09 + 0.04 / seeds, rel=0.05)
    assert spread.error == pytest.approx(np.sqrt(spread.rows / rows + spread.seeds / seeds))
    assert seeds - 1 <= spread.degrees <= rows


def test_zero_disagreement_is_no_finding():
    values = np.repeat([[1.0, 0.0, 1.0, 1.0, 0.0]], 3, 0)
    found = difference(Scores(values), Scores(values.copy()))
    assert (found.value, found.p, found.identical) == (0.0, 1.0, True)
    assert found.low < 0 < found.high  # five rows show little, also where they agree


def test_all_right_is_not_certain():
    found = interval(Scores(np.ones((3, 100))))
    assert found.value == found.high == 1.0
    assert 0.94 < found.low < 0.99


def test_numbers_may_be_anything():
    rng = np.random.default_rng(7)
    one = Scores(rng.normal(1000, 5, (3, 20_000)), share=False)
    found = interval(one)
    assert found.value == pytest.approx(1000, abs=0.1)
    assert 0.8 < (found.high - found.low) / (2 * 1.96 * 5 / np.sqrt(60_000)) < 3
    assert difference(one, Scores(one.values - 1.0, share=False)).value == pytest.approx(1.0)


def test_one_seed_covers_rows_alone():
    rng = np.random.default_rng(8)
    found = difference(Scores(rng.random((1, 50))), Scores(rng.random((1, 50))))
    assert found.spread.seeds == found.spread.freedom == 0
    assert found.low < found.value < found.high


def test_of_a_method_with_one_seed_left_no_more_is_known_than_of_others():
    """Two of its seeds failed: what seeds differ by is taken from those that have several; it was taken for nothing."""
    rng, wrong, held = np.random.default_rng(9), 0, 0
    for _ in range(300):
        one, two, three = outcomes(rng, [0.8] * 3, 3, 300, 0.05)
        found = with_seeds_of_others({"one": Scores(one.values[:1]), "two": two, "three": three})
        _, adjusted = claims(found.values())
        wrong += min(adjusted) < LEVEL
        alone = interval(found["one"])
        held += alone.low <= 0.8 <= alone.high
    assert wrong <= 33  # 67 without
    assert held >= 265  # 242 without


def test_a_borrowed_spread_counts_its_degrees_of_freedom_once():
    rng = np.random.default_rng(10)
    one, two, three = outcomes(rng, [0.8] * 3, 3, 300, 0.05)
    few = with_seeds_of_others({"one": Scores(one.values[:1]), "two": Scores(two.values[:1]), "three": three})
    assert difference(few["one"], few["two"]).spread.freedom == 2
    assert difference(few["one"], few["three"]).spread.freedom == 2
    assert difference(one, three).spread.freedom > 2
    alone = with_seeds_of_others({"one": Scores(one.values[:1])})["one"]
    assert difference(alone, Scores(two.values[:1])).spread.freedom == 0


def test_holm_is_holm():
    """Against the definition, worked by hand."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
