"""Would more rows help: known curves are found, intervals hold what twice the rows bring, and noise tells nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from microplane.comparison.learning_curve import Curve, _sentence, extrapolated, fitted, learning_curve
from microplane.comparison.plan import Trial
from microplane.comparison.scoring import choose
from microplane.comparison.statistics import Interval, Scores
from microplane.comparison.trials import Outcome
from microplane.comparison.verdict import Words
from tests.cases import some
from tests.comparison.test_statistics import outcomes

SHARES = (0.25, 0.5, 1.0)


def power(share, floor, fall, exponent):
    return floor + fall * np.asarray(share) ** -exponent


@pytest.mark.parametrize(("floor", "fall", "exponent"), [(0.1, 0.1, 0.5), (0.0, 0.3, 0.25), (0.2, 0.05, 1.0)])
def test_a_power_law_is_found_and_gone_on_with(floor, fall, exponent):
    fit = fitted(SHARES, power(SHARES, floor, fall, exponent)[None])
    assert fit.exponents[0] == pytest.approx(exponent)
    assert fit.at(2)[0] == pytest.approx(power(2, floor, fall, exponent))


def test_a_straight_line_in_the_logarithm_is_one_of_them():
    fit = fitted(SHARES, np.array([[0.3, 0.25, 0.2]]))
    assert fit.exponents[0] == 0
    assert fit.at(2)[0] == pytest.approx(0.15)


def test_no_curve_falls_below_no_error_at_all():
    assert fitted(SHARES, np.array([[0.2, 0.11, 0.02]])).at(2)[0] == 0


CURVES = [(0.1, 0.1, 0.5, 300, 3, 0.005), (0.05, 0.15, 0.25, 1000, 3, 0.01), (0.2, 0.0, 0.5, 300, 3, 0.01)]


@pytest.mark.parametrize(("floor", "fall", "exponent", "rows", "seeds", "spread"), some(CURVES, CURVES[::2]))
def test_intervals_hold_what_twice_the_rows_bring(floor, fall, exponent, rows, seeds, spread):
    rng, held, told, count = np.random.default_rng(rows), 0, 0, 50
    errors = power((*SHARES, 2.0), floor, fall, exponent)
    for _ in range(count):
        curve = extrapolated(SHARES, outcomes(rng, errors[:3], seeds, rows, spread))
        held += curve.gain.low <= errors[2] - errors[3] <= curve.gain.high
        told += curve.told
    assert held / count >= 0.88  # fewer come of a true 95% in 1 of 30 cases
    if not fall:
        assert told / count <= 0.1  # where no row helps, hardly ever is it said that one does


def test_a_curve_that_falls_steeply_is_told():
    rng, told = np.random.default_rng(2), 0
    for _ in range(20):
        told += extrapolated(SHARES, outcomes(rng, power(SHARES, 0.05, 0.15, 0.5), 3, 1000, 0.003)).gain.low > 0
    assert told >= 16


def test_the_same_scores_give_the_same_interval():
    scores = outcomes(np.random.default_rng(1), (0.4, 0.3, 0.25), 2, 100, 0.01)
    assert extrapolated(SHARES, scores).gain == extrapolated(SHARES, scores).gain


def test_seeds_that_differ_widen_it():
    rows = np.random.default_rng(1).random(200)
    alike = [Scores(np.tile(rows < error, (3, 1)).astype(float)) for error in (0.4, 0.3, 0.25)]
    apart = [
        Scores(np.stack([rows < error + move for move in (-0.05, 0, 0.05)]).astype(float)) for error in (0.4, 0.3, 0.25)
    ]
    narrow, wide = (extrapolated(SHARES, scores).gain for scores in (alike, apart))
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


@pytest.mark.parametrize(
    ("gain", "share", "said"),
    [
        ((0.014, 0.002, 0.026), True, "would bring about 1.4 points more, between 0.2 and 2.6."),
        ((0.004, -0.008, 0.019), True, "twice the training rows (200) would bring between -0.8 and +1.9 points."),
        ((-0.02, -0.03, -0.01), True, "would cost about 2.0 points, between 1.0 and 3.0."),
        ((0.2, 0.1, 0.3), False, "would bring about 0.2 less error, between 0.1 and 0.3."),
    ],
)  # fmt: skip
def test_it_is_said_in_one_sentence(gain, share, said):
    text = _sentence("lora", 200, Curve(Interval(*gain), fitted(SHARES, np.zeros((1, 3)))), Words(share))
    assert text.endswith(said)
    assert "lora" in text


def test_without_a_run_on_a_part_nothing_is_told():
    plan = SimpleNamespace(counts={"train": 100})
    failed = [Outcome(Trial("lora", "part", 1e-3, 5, 0, 25), Path("none"), {}, "no room")]
    found = learning_curve(plan, choose(None, None, ["yes", "no", "yes"]), "lora", {25: failed, 50: failed}, failed)
    assert found["sentence"] == (
        "Whether more rows would help cannot be told: no run on 25% of them succeeded (no room)."
    )
    assert (found["points"], found["twice"], found["told"]) == ([], None, False)


def test_no_curve_rises_above_all_rows_wrong():
    errors = np.array([[0.5, 0.75, 1.0]])
    assert fitted(SHARES, errors).at(2)[0] > 1
    assert fitted(SHARES, errors, most=1.0).at(2)[0] == 1
    rows = np.arange(40) / 40
    worse = [Scores((rows < error)[None] * 1.0) for error in (0.5, 0.75, 1.0)]
    assert extrapolated(SHARES, worse).gain.value == pytest.approx(0, abs=1e-6)  # of all rows wrong none can be lost
    larger = [Scores(np.full((1, 5), error), share=False) for error in (1.0, 2.0, 3.0)]
    assert extrapolated(SHARES, larger).fit.at(2)[0] > 3


@pytest.mark.parametrize("right", [True, False])
def test_scores_that_are_the_same_with_all_sizes_tell_nothing(tmp_path, right):
    """With twenty rows that are all right nobody knows that more rows would bring nothing at all."""
    runs = {}
    for percent, rows in ((25, 8), (50, 16), (100, 32)):
        (place := tmp_path / str(percent)).mkdir()
        line = {"target": "yes", "after": "yes" if right else f"no {percent}"}
        (place / "answers.jsonl").write_text(f"{json.dumps(line)}\n" * 20)
        trial = Trial("lora", "final" if percent == 100 else "part", 1e-3, 5, 0, percent)
        runs[percent] = [Outcome(trial, place, {"data": {"train_rows": rows}})]
    plan, metric, whole = SimpleNamespace(counts={"train": 32}), choose("exact_match", None, ["yes"]), runs.pop(100)
    found = learning_curve(plan, metric, "lora", runs, whole)
    assert found["sentence"] == (
        "Whether more rows would help lora cannot be told: with 8 training rows it scores the same as with all 32, on "
        "every test row."
    )
    assert (found["told"], found["twice"], [point["rows"] for point in found["points"]]) == (False, None, [8, 16, 32])
