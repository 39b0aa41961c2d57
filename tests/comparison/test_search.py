"""The search of a learning rate: the same trials for everybody, wider where the best lies on an edge."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest

from microplane.comparison.budget import Budget, number_in, seconds_in
from microplane.comparison.plan import Trial
from microplane.comparison.search import FACTOR, Lengths, best_of, edge_of, finalists, longest, rates
from microplane.comparison.trials import Trials
from microplane.data.progress import Silent
from microplane.errors import ConfigError


def searched(loss, default=1e-3):
    """All that a method would try, given the loss of each rate."""
    tried: dict[float, float] = {}
    while new := [rate for rate in rates(default, tried) if rate not in tried]:
        tried[new[0]] = loss(new[0])
    return tried


def bowl(best):
    return lambda rate: (math.log10(rate) - math.log10(best)) ** 2


def test_the_methods_own_rate_comes_first_and_the_grid_is_even_in_logarithms():
    tried = list(searched(bowl(1e-3)))
    assert tried[0] == 1e-3
    steps = [math.log(high / low) / math.log(FACTOR) for low, high in pairwise(sorted(tried[:5]))]
    assert steps == pytest.approx([1, 1, 1, 1], abs=0.01)


@pytest.mark.parametrize("best", [1e-6, 1e-4, 5e-4, 1e-3, 2e-3, 1e-2, 1.0])
def test_every_method_gets_the_same_number_of_trials(best):
    assert len(searched(bowl(best))) == 7


@pytest.mark.parametrize(("best", "edge"), [(1e-6, "lowest"), (1.0, "highest")])
def test_a_best_on_an_edge_widens_the_grid_and_is_flagged(best, edge):
    tried = searched(bowl(best))
    span = max(tried) / min(tried)
    assert span == pytest.approx(FACTOR**6, rel=0.02)
    assert edge_of(tried) == edge


def test_a_best_within_the_grid_is_looked_at_more_closely():
    tried = searched(bowl(1.7e-3))
    assert edge_of(tried) is None
    assert max(tried) / min(tried) == pytest.approx(FACTOR**4, rel=0.02)
    assert abs(math.log10(best_of(tried) / 1.7e-3)) < 0.13  # a quarter of a decade is the half of a step


def test_rates_that_fail_lose():
    tried = searched(lambda rate: math.inf if rate > 5e-4 else 1 / rate)
    assert best_of(tried) < 5e-4
    assert all(math.isfinite(tried[rate]) for rate in finalists(tried))


def test_equal_losses_take_the_lower_rate():
    assert best_of({1e-3: 1.0, 1e-4: 1.0}) == 1e-4


def test_lengths_fill_a_budget_and_no_more():
    def taken(final):
        return Lengths(final).of_method(3)

    for budget in (200, 1000, 12345):
        steps = longest(budget, taken, 10**6)
        assert taken(steps) <= budget < taken(steps + 1)
    assert longest(10**9, taken, 500) == 500
    assert longest(3, taken, 500) == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90min", 5400), ("1h30m", 5400), ("45s", 45), ("1.5 h", 5400), ("1d", 86400)]
)
def test_times(text, seconds):
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "two hours", "2x", "0s", "2h or so"])
def test_what_is_no_time(text):
    with pytest.raises(ConfigError, match="expected as in 2h"):
        seconds_in(text)


def test_numbers():
    assert [number_in(text, "--tokens") for text in ("200", "200k", "1.5M", "2,000")] == [200, 200_000, 1_500_000, 2000]
    for text in ("", "0", "-3", "many"):
        with pytest.raises(ConfigError, match="--tokens"):
            number_in(text, "--tokens")


def test_one_budget_alone():
    assert Budget.of(None, None, None) is None
    assert Budget.of("1h", None, None) == Budget("seconds", 3600)
    with pytest.raises(ConfigError, match="--budget and --steps are given"):
        Budget.of("1h", None, 3)


PLAN = SimpleNamespace(set={}, task="classification", answer_rows=5, general=None)
PLAN.rows, PLAN.method_knobs = SimpleNamespace(test="test"), lambda method: {}


@pytest.mark.parametrize(("trial", "every"), [
    (Trial("lora", "short", 1e-3, 12), "6"),
    (Trial("lora", "half", 1e-3, 7), "4"),
    (Trial("lora-auto", "short", 1e-3, 12), None),  # it decides by its validations
    (Trial("lora", "final", 1e-3, 48), None),
])  # fmt: skip
def test_a_run_of_the_search_is_validated_halfway_and_at_its_end(trial, every, tmp_path):
    command = Trials(tmp_path, PLAN, Silent()).command(trial)  # type: ignore[arg-type]
    found = [part.removeprefix("train.eval_every=") for part in command if part.startswith("train.eval_every")]
    assert found == ([every] if every else [])
