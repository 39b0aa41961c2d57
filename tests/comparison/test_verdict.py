"""What is said of methods: a winner where there is one, and else that there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from microplane.comparison.statistics import Scores
from microplane.comparison.verdict import Claim, Judgement, Words, sentences

COSTS = {"full": 9.0, "lora": 2.0, "bitfit": 1.0, "dora": 3.0}


def scores(rng, accuracy, rows=1000, seeds=3):
    hard = np.random.default_rng(0).random(rows)  # the same rows are hard for all
    return Scores((np.clip(hard + rng.normal(0, 0.05, (seeds, rows)), 0, 1) < accuracy).astype(float))


def judgement(baseline=0.5, **accuracies):
    rng = np.random.default_rng(1)
    methods = {name: scores(rng, accuracy) for name, accuracy in accuracies.items()}
    fixed = Scores(scores(rng, baseline).values[:1], seeded=False)
    return Judgement(methods, {"majority": fixed}, COSTS)


def test_a_winner_is_named_with_its_lead():
    found = judgement(lora=0.8, full=0.7, bitfit=0.6)
    assert found.leaders == ["lora"]
    first, *rest = sentences(found, Words())
    assert first.startswith("lora is the best: ")
    assert "points" in first
    assert "better than full, the next." in first
    assert rest == []


def test_equals_are_not_told_apart_and_the_cheapest_is_advised():
    found = judgement(lora=0.8, full=0.803, bitfit=0.6)
    assert found.leaders == ["lora", "full"]
    assert found.advised == "lora"
    first, behind, need = sentences(found, Words())
    assert first.startswith("These two cannot be told apart on 1,000 rows with 3 seeds (a difference below ")
    assert first.endswith("is invisible here): lora, full. Take the cheapest: lora (it trains the fewest weights).")
    assert behind.startswith("bitfit does worse than ")
    assert need.startswith("To tell ")
    assert "would take" in need


def test_the_advised_is_the_cheapest_of_those_that_lead_only():
    found = judgement(lora=0.8, full=0.8, bitfit=0.5, baseline=0.4)
    assert COSTS["bitfit"] < COSTS["lora"]
    assert found.advised == "lora"


@pytest.mark.parametrize(("baseline", "verb"), [(0.8, "is not shown to beat"), (0.95, "does worse than")])
def test_a_baseline_that_is_not_beaten_comes_first(baseline, verb):
    found = judgement(lora=0.8, full=0.79, baseline=baseline)
    assert not found.beats_baseline
    assert sentences(found, Words())[0].startswith(
        f"Fine-tuning {verb} majority, which needs none, on these 1,000 rows"
    )


def test_a_worse_method_does_not_win_by_being_different():
    """A difference that is certain counts in its own direction only."""
    found = judgement(lora=0.6, full=0.8)
    assert found.is_better("full", "lora")
    assert not found.is_better("lora", "full")
    assert found.claim("lora", "full").difference.value < 0 < found.claim("full", "lora").difference.value


def test_of_errors_less_is_better():
    rng = np.random.default_rng(2)
    methods = {name: Scores(rng.exponential(size, (3, 500)), share=False) for name, size in (("lora", 1), ("full", 3))}
    base = {"mean": Scores(rng.exponential(5, (1, 500)), seeded=False, share=False)}
    found = Judgement(methods, base, COSTS, lower=True)
    assert (found.ranking, found.baseline, found.leaders) == (["lora", "full"], "mean", ["lora"])
    assert found.beats_baseline
    assert "%" not in sentences(found, Words(share=False))[0]


def test_scores_that_are_all_alike_are_said_to_be():
    """The answers may differ: two that are wrong on a row score alike."""
    values = scores(np.random.default_rng(3), 0.8).values
    found = Judgement({"lora": Scores(values), "full": Scores(values.copy())}, {}, COSTS)
    assert sentences(found, Words())[-1] in (
        "lora and full score alike on every row.",
        "full and lora score alike on every row.",
    )


def test_one_seed_is_said():
    rng = np.random.default_rng(4)
    methods = {name: scores(rng, 0.8, seeds=1) for name in ("lora", "full")}
    assert sentences(Judgement(methods, {}, COSTS), Words())[-1].startswith("With one seed nothing is known")


def test_claims_are_counted_all_together():
    found = judgement(lora=0.8, full=0.8, bitfit=0.8, dora=0.8)
    assert len(found.claims) == 6 + 4
    assert all(claim.p >= claim.difference.p for claim in found.claims)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_to_be_below_the_luckiest_of_several_baselines_counts_for_each_of_them(count, lower):
    rng = np.random.default_rng(2)
    methods = {"lora": scores(rng, 0.61), "full": scores(rng, 0.59)}
    best = scores(rng, 0.6).values[:1]
    others = {f"other {number}": Scores(best * 0 + (1.0 if lower else 0.0), seeded=False) for number in range(1, count)}
    found = Judgement(methods, {"majority": Scores(best, seeded=False)} | others, COSTS, lower)
    assert found.baseline == "majority"
    above, below = ("full", "lora") if lower else ("lora", "full")
    p = found.claim(below, "majority").difference.p
    assert found._p(found.claim(below, "majority").difference, "majority") == pytest.approx(count * p)
    over = found.claim(above, "majority").difference
    assert found._p(over, "majority") == over.p


@pytest.mark.parametrize("baselines", [1, 4, 8])
def test_a_method_is_not_said_to_be_worse_than_the_luckiest_of_equal_baselines(baselines):
    rng, wrong = np.random.default_rng(baselines), 0
    for _ in range(150):
        truth = rng.integers(0, 2, 300)
        guesses = [(rng.integers(0, 2, 300) == truth)[None] * 1.0 for _ in range(baselines)]
        leaning = rng.normal(size=300)
        method = Scores(((leaning + rng.normal(size=(3, 300)) > 0) == truth) * 1.0)
        fixed = {str(number): Scores(guess, seeded=False) for number, guess in enumerate(guesses)}
        wrong += any(claim.holds for claim in Judgement({"lora": method}, fixed, COSTS).claims)
    assert wrong <= 12  # of 150; more come of a true 5% in 3 of 100 cases


@pytest.mark.parametrize("rows", [100, 1000])
def test_no_winner_comes_out_of_noise(rows):
    """Of 100 comparisons of four methods and a baseline that are all equal, few claim anything."""
    rng, wrong = np.random.default_rng(rows), 0
    for _ in range(100):
        hard = rng.normal(0, 1, rows)
        right = [(hard + rng.normal(0, 1, (seeds, rows)) > 0).astype(float) for seeds in (3, 3, 3, 3, 1)]
        methods = {name: Scores(values) for name, values in zip(COSTS, right, strict=False)}
        found = Judgement(methods, {"majority": Scores(right[-1], seeded=False)}, COSTS)
        wrong += any(claim.holds for claim in found.claims)
    assert wrong <= 9


def test_where_seeds_differ_so_that_nothing_can_be_seen_no_figure_is_given():
    rows = np.arange(100) / 100
    methods = {
        "lora": Scores(np.stack([rows < 0.2, rows < 0.8]) * 1.0),
        "full": Scores(np.stack([rows < 0.9, rows < 0.3]) * 1.0),
    }
    found = Judgement(methods, {}, COSTS)
    assert found.visible is not None
    assert found.visible > 1
    assert "with 2 seeds (no difference can be seen here): " in sentences(found, Words())[0]


def test_a_claim_is_judged_among_all_claims_and_turned_with_its_interval():
    found = judgement(lora=0.8, full=0.7).claim("full", "lora")
    assert (found.one, found.other) == ("full", "lora")
    assert found.difference.low < found.difference.value < found.difference.high < 0
    alone = replace(found.difference, p=0.02)
    assert Claim("full", "lora", alone, p=0.04).holds
    assert not Claim("full", "lora", alone, p=0.06).holds


def test_the_best_baseline_is_the_lowest_of_errors():
    rng, methods = np.random.default_rng(0), {}
    baselines = {name: Scores(rng.normal(mean, 1, (1, 50)), False, False) for name, mean in (("a", 3), ("b", 1))}
    assert Judgement(methods, baselines, COSTS, lower=True).baseline == "b"
    assert Judgement(methods, baselines, COSTS).baseline == "a"


def test_one_leader_that_beats_the_baseline_is_enough():
    found = judgement(lora=0.8, bitfit=0.5)
    vars(found)["leaders"] = ["lora", "bitfit"]
    assert found.beats_baseline
    vars(other := judgement(lora=0.8, bitfit=0.5))["leaders"] = ["bitfit"]
    assert not other.beats_baseline
