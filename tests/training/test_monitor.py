"""What the monitor says of curves: the best, patience, overfitting, divergence, and what is only chance."""

import math

import numpy as np
import pytest
from scipy import stats

from microplane.training.monitor import Monitor, ValidationLoss, _noise, is_worse


def fed(patience, *checks, passes=1.0):
    """Checks of (validation loss, train loss), 10 steps and `passes` passes apart; there is no noise in them."""
    monitor = Monitor(patience)
    best = []
    for number, (validation, train) in enumerate(checks):
        losses = [] if math.isinf(train) else [train] * 10
        best.append(monitor.add(10 * number, ValidationLoss(validation), losses, passes * number))
    return monitor, best


def kind(monitor):
    verdict = monitor.verdict()
    return verdict.kind if verdict else None


START = (2.0, math.inf)


def test_overfitting_is_said_with_the_step_that_is_kept():
    monitor, best = fed(3, START, (1.0, 1.0), (1.1, 0.8), (1.2, 0.6), (1.3, 0.4))
    assert best == [True, True, False, False, False]
    assert monitor.verdict().text == (
        "overfitting since step 10: validation loss rose from 1 to 1.3 while training loss fell, in pass 4 over the "
        "rows; the weights of step 10 are kept"
    )
    assert str(monitor.verdict()) == "overfitting since step 10"
    assert monitor.exhausted


def ignoring(*checks):
    """Checks of (validation loss, whether the inputs are ignored)."""
    monitor = Monitor(0)
    for number, (loss, ignored) in enumerate(checks):
        monitor.add(10 * number, ValidationLoss(loss, ignores_inputs=ignored), [loss] * 10, number)
    return monitor


def test_a_model_that_ignores_its_inputs_has_diverged_though_its_loss_falls():
    monitor = ignoring((4.7, False), (2.5, False), (2.1, True))
    assert kind(monitor) == "divergence"
    assert "whatever it is asked" in monitor.verdict().text
    assert monitor.best["step"] == 10  # not the lowest loss, which is that of the answers' frequencies
    assert kind(ignoring((4.7, False), (2.1, True), (2.2, False))) is None
    assert ignoring((4.7, False), (2.1, True)).best["step"] == 0


def test_a_model_that_ignored_its_inputs_from_the_start_is_not_blamed():
    assert kind(ignoring((4.7, True), (2.1, True), (2.2, True))) is None
    monitor = ignoring((4.7, True), (2.1, True), (2.0, True))
    assert kind(monitor) is None
    assert monitor.best["step"] == 20


def test_rows_that_are_seen_for_the_first_time_cannot_be_overfitted():
    monitor, _ = fed(3, START, (1.0, 1.0), (1.1, 0.8), (1.2, 0.6), passes=0.1)
    assert kind(monitor) == "mismatch"


def test_the_first_pass_ends_with_rows_seen_for_the_first_time():
    checks = START, (1.0, 1.0), (1.1, 0.8), (1.2, 0.6)
    assert kind(fed(3, *checks, passes=1 / 3)[0]) == "mismatch"  # of which the last check is at one pass
    assert kind(fed(3, *checks, passes=0.34)[0]) == "overfitting"


def test_training_loss_is_compared_with_that_just_before_the_best_check():
    """Not with that of all steps before it, which begin where the run does."""
    monitor = Monitor(5)
    windows = ([], 2.2), ([2.0] * 36 + [0.5] * 12, 0.49), ([0.62] * 48, 0.62), ([0.6] * 48, 0.7)
    for number, (losses, validation) in enumerate(windows):
        monitor.add(48 * number, ValidationLoss(validation), losses, 0.1 * number)
    assert kind(monitor) == "divergence"


def test_one_worse_check_is_no_verdict_and_a_small_rise_neither():
    assert kind(fed(3, START, (1.0, 1.0), (1.1, 0.8))[0]) is None
    assert kind(fed(3, START, (1.0, 1.0), (1.01, 0.8), (1.015, 0.7))[0]) is None  # less than 2%
    assert kind(fed(3, START, (1.0, 1.0), (1.1, 0.8), (1.01, 0.7))[0]) is None  # fell back
    assert not fed(2, START, (1.0, 1.0), (1.01, 0.8), (1.015, 0.7))[0].exhausted


def test_a_collapse_is_divergence():
    """Losses of a run of LoRA at ten times its rate on reviews, which was called overfitting once."""
    monitor = Monitor(5)
    first = [0.69] * 18 + [0.62] * 18 + [0.5] * 12  # of which the last are the weights that were validated
    windows = ([], 0.69), (first, 0.487), ([0.638] * 48, 0.624), ([0.616] * 48, 0.688)
    for number, (losses, validation) in enumerate(windows):
        monitor.add(48 * number, ValidationLoss(validation), losses, 0.1 * number)
    verdict = monitor.verdict()
    assert verdict.kind == "divergence"
    assert "training loss (0.616) does not fall either: the learning rate is too high" in verdict.text


def test_dropout_that_holds_training_loss_up_is_no_divergence():
    monitor, _ = fed(5, START, (1.0, 1.3), (1.1, 1.2), (1.15, 1.1))
    assert kind(monitor) == "overfitting"


def test_training_loss_that_has_nowhere_to_fall_is_overfitting():
    monitor, _ = fed(5, START, (1.0, 0.01), (1.2, 0.011), (1.5, 0.012))
    assert kind(monitor) == "overfitting"


def test_above_the_base_one_check_is_enough():
    monitor, _ = fed(3, START, (4.0, 5.0), passes=0.1)
    assert kind(monitor) == "divergence"
    monitor, _ = fed(3, START, (1.0, 1.5), (4.0, 5.0), passes=0.1)
    assert kind(monitor) == "divergence"
    monitor, _ = fed(3, START, (1.0, 1.5), (4.0, 1.2), passes=0.1)  # training goes well: wait for another one
    assert kind(monitor) is None


def test_a_run_that_starts_worse_than_its_base_and_comes_back_has_not_diverged():
    monitor, _ = fed(3, START, (1.9, 2.3), (1.5, 1.8), passes=0.1)
    assert kind(monitor) is None


def test_losses_that_are_no_numbers_are_worse():
    monitor, _ = fed(2, START, (math.nan, 3.0), (math.nan, 3.0), passes=0.1)
    assert kind(monitor) == "divergence"
    assert monitor.exhausted


def test_still_falling_at_the_end():
    assert fed(3, START, (1.5, 1.0), (1.2, 0.8))[0].at_end().kind == "unfinished"
    assert fed(3, START, (1.2, 1.0), (1.195, 0.8))[0].at_end() is None
    assert fed(3, START, (1.5, 1.0), (1.2, 0.8))[0].verdict() is None


def test_patience():
    monitor, _ = fed(2, (1.0, 1.0), (1.1, 1.0), (1.1, 1.0))
    assert monitor.exhausted
    assert not fed(0, (1.0, 1.0), (1.1, 1.0), (1.1, 1.0))[0].exhausted
    assert not fed(2, (1.0, 1.0), (1.1, 1.0), (0.9, 1.0))[0].exhausted
    assert not fed(2, (1.0, 1.0), (1.1, 1.0), (1.2, 1.0), (1.01, 1.0))[0].exhausted  # as good as the best again


def test_a_decision_gives_patience_back():
    monitor, _ = fed(2, (1.0, 1.0), (1.1, 1.0))
    monitor.decide("rank 1 -> 2")
    monitor.add(20, ValidationLoss(1.2), [1.0])
    assert monitor.since_best == 1
    assert not monitor.exhausted
    monitor.add(30, ValidationLoss(1.2), [1.0])
    assert monitor.exhausted


def test_weights_that_cannot_be_the_result_are_the_best_only_while_there_are_no_others():
    monitor = Monitor(1)
    best = [monitor.add(step, ValidationLoss(loss), [1.0], 0.0, settled) for step, loss, settled in
            ((0, 1.0, False), (10, 2.0, False), (20, 3.0, True), (30, 2.5, True))]  # fmt: skip
    assert best == [True, False, True, True]
    assert not monitor.exhausted
    assert monitor.add(40, ValidationLoss(2.6), [1.0]) is False
    assert monitor.exhausted


def test_a_tie_goes_to_the_earlier_check():
    monitor, best = fed(3, START, (1.0, 1.0), (1.0, 0.9))
    assert best == [True, True, False]
    assert monitor.best["step"] == 10


# What is chance


def measured(rows, counts):
    return ValidationLoss.of(zip(rows.tolist(), counts, strict=True))


@pytest.mark.parametrize("groups", [3, 8, 20, 70])
def test_a_difference_counts_in_one_case_of_forty_where_there_is_none(groups):
    """Losses of the same rows at two checks between which nothing but chance has changed."""
    random = np.random.default_rng(0)
    worse = 0
    for _ in range(2000):
        counts = random.integers(5, 15, groups).tolist()
        first = random.normal(5, 1, groups) * counts
        second = first + random.normal(0, 3, groups) * np.sqrt(counts)
        checks = []
        for number, sums in enumerate((first, second)):
            monitor = Monitor(0)
            monitor.add(number, measured(sums, counts), [1.0])
            checks += monitor.checks
        worse += is_worse(checks[1], checks[0])
    assert worse / 2000 < 0.045


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_the_margin_of_few_groups_is_students(groups):
    """Of groups of equal size the ratio estimator is a mean, and its error that of one."""
    now, then = np.random.default_rng(groups).normal(10, 3, (2, groups))
    items = [[[total, 5] for total in side] for side in (now, then)]
    error = np.std((now - then) / 5, ddof=1) / math.sqrt(groups)
    assert _noise(*items) == pytest.approx(stats.t.isf(0.025, groups - 1) * error, rel=2e-3)


def test_the_error_of_the_training_loss_is_that_of_its_mean():
    monitor, losses = Monitor(0), [1.0, 2.0, 4.0, 1.0, 3.0]
    monitor.add(5, ValidationLoss(1.0), losses)
    assert monitor.checks[0]["train_error"] == pytest.approx(stats.sem(losses))


def test_a_difference_of_all_rows_counts():
    counts = [10] * 12
    first = np.random.default_rng(0).normal(10, 3, 12)
    monitor = Monitor(0)
    monitor.add(0, measured(first, counts), [1.0])
    monitor.add(1, measured(first * 1.1, counts), [1.0])
    assert is_worse(*reversed(monitor.checks))


def test_the_mean_is_of_all_items_and_the_groups_add_up_to_it():
    sums, counts = np.random.default_rng(0).normal(10, 3, 53), list(range(1, 54))
    loss = measured(sums, counts)
    assert loss.mean == pytest.approx(sums.sum() / sum(counts), rel=1e-12)
    assert len(loss.groups) == 20
    assert sum(total for total, _ in loss.groups) == pytest.approx(sums.sum())
    assert sum(count for _, count in loss.groups) == sum(counts)
