import math

import pytest

from microplane.config.knobs import TrainKnobs
from microplane.methods import make_method
from microplane.methods.method import trainable
from microplane.training.optim import make_optimizer, schedule, still_frozen, warmup_steps
from tests.tiny import tiny


def test_warmup_is_a_share_below_one_and_a_number_of_steps_above():
    assert warmup_steps(0.1, 200) == 20
    assert warmup_steps(0, 200) == 0
    assert warmup_steps(7, 200) == 7
    assert warmup_steps(1, 200) == 1, "one step, and not all of them"
    assert warmup_steps(0.999, 1000) == 999


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_every_schedule_rises_linearly_then_starts_at_the_peak(name):
    assert [schedule(name, step, 100, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(name, 4, 100, 4) == 1.0
    assert schedule(name, 0, 100, 0) == 1.0


def test_the_ends():
    assert schedule("constant", 99, 100, 0) == 1.0
    assert schedule("linear", 50, 100, 0) == 0.5
    assert schedule("linear", 99, 100, 0) == pytest.approx(0.01)
    assert schedule("linear", 60, 100, 20) == 0.5  # of the steps behind the warm-up
    assert schedule("linear", 99, 100, 20) == pytest.approx(1 / 80)
    assert schedule("cosine", 60, 100, 20) == pytest.approx(0.5)
    assert schedule("cosine", 50, 100, 0) == pytest.approx(0.5)
    assert schedule("cosine", 75, 100, 0) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))


def test_the_schedule_of_the_2017_transformer():
    """lr proportional to min(n^-0.5, n x warmup^-1.5), n from 1: as a share of its peak at n = warmup."""
    peak = 400**-0.5
    for step in (0, 7, 398, 399, 400, 1599, 99_999):
        n = step + 1
        wanted = min(n**-0.5, n * 400**-1.5) / peak
        assert schedule("inverse_sqrt", step, 100_000, 400) == pytest.approx(wanted)
    assert schedule("inverse_sqrt", 1599, 5, 400) == 0.5
    assert [schedule("inverse_sqrt", step, 10, 0) for step in (0, 3)] == [1.0, 0.5]


def full():
    model, method = tiny(), make_method("full")  # two blocks
    method.attach(model)
    return model, method


def level(name):
    """Of its parameters, from the input."""
    return 0 if name.startswith("embed") else 1 + int(name.split(".")[1]) if name.startswith("layers") else 3


def test_the_rate_of_a_block_is_a_share_of_that_of_the_block_above():
    model, method = full()
    optimizer = make_optimizer(method, model, TrainKnobs(lr=0.8, layer_decay=0.5))
    rates = {id(tensor): group["lr"] for group in optimizer.param_groups for tensor in group["params"]}
    for name, tensor in trainable(model).items():
        assert rates[id(tensor)] == pytest.approx(0.8 * 0.5 ** (3 - level(name))), name
    assert optimizer.param_groups[0]["lr"] == 0.8, "which the log tells"


def test_from_the_top_a_block_more_trains_after_so_many_steps():
    model, _ = full()
    for step, frozen in (
        (-1, range(4)),
        (0, range(3)),
        (4, range(3)),
        (5, range(2)),
        (9, range(2)),
        (10, [0]),
        (15, []),
    ):
        assert {level(name) for name in still_frozen(model, 5, step)} == set(frozen), step
    assert still_frozen(model, None, 0) == still_frozen(model, None, -1) == {}
