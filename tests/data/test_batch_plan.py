import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplane.config.knobs import TrainKnobs
from microplane.data.batch_plan import BatchPlan, micro_batches, pack

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=200).map(lambda x: np.array(x, np.int32))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(0, 5), st.none() | st.integers(16, 900))
def test_an_epoch_holds_each_row_once_and_comes_out_the_same_again(lengths, size, seed, tokens):
    plan = BatchPlan(lengths, size, tokens, seed)
    steps = plan.epoch(2)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(lengths)))
    again = BatchPlan(lengths, size, tokens, seed).epoch(2)
    assert all(np.array_equal(a, b) for a, b in zip(steps, again, strict=True))
    if not tokens:
        assert len(steps) == plan.total_steps(1)
    else:
        assert all(lengths[step].sum() <= tokens or len(step) == 1 for step in steps)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.none() | st.integers(16, 400))
def test_any_step_is_found_by_its_number(lengths, size, tokens):
    plan = BatchPlan(lengths, size, tokens, 1)
    walked = [step for epoch in range(3) for step in plan.epoch(epoch)]
    for number in (0, len(walked) // 2, len(walked) - 1):
        assert np.array_equal(BatchPlan(lengths, size, tokens, 1).at(number)[1], walked[number])
    assert plan.total_steps(3) == len(walked)


def test_steps_are_found_where_one_epoch_has_more_than_another():
    plan = BatchPlan(np.random.default_rng(2).integers(1, 1000, 200), 8, 900)
    epochs = [plan.epoch(number) for number in range(5)]
    assert len({len(steps) for steps in epochs}) > 1
    walked = [(number, step) for number, steps in enumerate(epochs) for step in steps]
    for number in range(0, len(walked), 7):
        epoch, rows = plan.at(number)
        assert epoch == walked[number][0]
        assert np.array_equal(rows, walked[number][1])


def test_epochs_differ_and_so_do_seeds():
    lengths = np.arange(1, 101)
    flat = lambda seed, epoch: np.concatenate(BatchPlan(lengths, 4, seed=seed).epoch(epoch)).tolist()  # noqa: E731
    assert flat(0, 0) != flat(0, 1)
    assert flat(0, 0) != flat(1, 0)


def test_parts_of_an_epoch():
    plan = BatchPlan(np.full(100, 10), 10)
    assert plan.total_steps(0.5) == 5
    assert plan.total_steps(2.25) == 22
    assert plan.total_steps(0.001) == 1
    assert BatchPlan(np.full(100, 10), 40).total_steps(1.6) == 5, "rounded, and not cut off"
    by_tokens = BatchPlan(np.full(100, 10), 1, batch_tokens=100)
    assert [by_tokens.total_steps(epochs) for epochs in (0.5, 1.28, 2.25)] == [5, 13, 22]


@pytest.mark.parametrize(
    ("rows", "knobs", "passes"),
    [
        (3200, {}, 1), (3192, {}, 2), (1601, {}, 2), (1600, {}, 2), (1592, {}, 3), (300, {}, 3), (8, {}, 3),
        (1080, {"batch_size": 1}, 1), (100_000, {}, 1), (1080, {"batch_tokens": 80}, 3),
        (40, {"steps": 15}, 3), (40, {"epochs": 2.5}, 2.5), (40, {"steps": 5, "epochs": 9}, 1),
    ],
)  # fmt: skip
def test_few_rows_are_read_more_often_where_nobody_says_how_often(rows, knobs, passes):
    knobs = TrainKnobs(**knobs)
    plan = BatchPlan.of(np.full(rows, 10), knobs)
    assert plan.passes(knobs) == passes
    assert plan.run_steps(knobs) == (knobs.steps or plan.total_steps(passes))


def test_steps_hold_rows_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 1000, 2000)
    spread = [np.ptp(lengths[step]) for step in BatchPlan(lengths, 10).epoch(0)]
    assert np.median(spread) < 100


def test_rows_meet_others_in_each_epoch():
    """Of more rows than one pool sorts by length, and of rows of one length."""
    for lengths in (np.random.default_rng(0).integers(1, 99, 1000), np.full(64, 7)):
        plan = BatchPlan(lengths, 8)
        first, second = ({frozenset(step.tolist()) for step in plan.epoch(epoch)} for epoch in (0, 1))
        assert len(first & second) < 0.1 * len(first)


@pytest.mark.parametrize("tokens", [None, 3000])
def test_steps_of_all_lengths_follow_each_other(tokens):
    """Short steps do not all come before long ones, as they are cut."""
    lengths = np.random.default_rng(0).integers(1, 1000, 400)
    means = [lengths[step].mean() for step in BatchPlan(lengths, 10, tokens).epoch(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(16, 500))
def test_micro_batches_keep_the_budget_and_lose_nothing(lengths, budget):
    rows = np.arange(len(lengths))
    parts = micro_batches(rows, lengths, budget)
    assert sorted(row for part in parts for row in part) == rows.tolist()
    assert all(lengths[part].sum() <= budget or len(part) == 1 for part in parts)


def test_a_step_of_a_late_epoch_costs_what_one_of_the_first_does():
    lengths = np.random.default_rng(0).integers(5, 60, 20_000)
    plan, fresh = BatchPlan(lengths, 8, 900), BatchPlan(lengths, 8, 900)
    planned = []
    plan._plan = lambda number, made=plan._plan: planned.append(number) or made(number)
    total = plan.total_steps(6)
    for step in range(total - 50, total):
        epoch, rows = plan.at(step)
        assert epoch == 5
        assert np.array_equal(rows, fresh.at(step)[1])
    assert planned == [*range(6), 5], "each once to be counted, and the one in use"
    plan = BatchPlan(lengths, 8, 900)
    counted, plan._plan = [], lambda number, made=plan._plan: counted.append(number) or made(number)
    for step in range(0, total, 40):
        plan.at(step)
    assert len(counted) <= 2 * 6


def test_a_row_longer_than_the_budget_is_alone():
    assert pack([0, 1, 2], np.array([5, 100, 5]), 16) == [[0], [1], [2]]


@pytest.mark.parametrize("size", [1, 3, 16])
def test_only_the_last_step_of_a_pool_is_short(size):
    plan = BatchPlan(np.full(100, 7), size)
    sizes = sorted(len(step) for step in plan.epoch(0))
    assert sizes[1:] == [size] * (len(sizes) - 1)
