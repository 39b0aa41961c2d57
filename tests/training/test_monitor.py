import math

from microplane.training.monitor import Monitor


def fed(patience, *pairs):
    monitor = Monitor(patience)
    best = [monitor.add(10 * i, validation, train) for i, (validation, train) in enumerate(pairs)]
    return monitor, best


def test_overfitting_is_said_with_the_step_that_is_kept():
    monitor, best = fed(3, (2.0, math.inf), (1.0, 1.0), (1.1, 0.8), (1.2, 0.6), (1.3, 0.4))
    assert best == [True, True, False, False, False]
    assert monitor.verdict() == (
        "validation loss has risen for 3 checks while training loss fell: overfitting since step 10; "
        "the adapter of step 10 is kept"
    )
    assert monitor.exhausted


def test_a_wobble_is_not_overfitting():
    assert fed(3, (2.0, 9.0), (1.0, 1.0), (1.1, 0.8))[0].verdict() is None  # one check
    assert fed(3, (2.0, 9.0), (1.0, 1.0), (1.2, 0.8), (1.1, 0.7))[0].verdict() is None  # falling again
    assert fed(3, (2.0, 9.0), (1.0, 1.0), (1.1, 1.2), (1.2, 1.4))[0].verdict() is None  # training got worse too


def test_patience():
    monitor, _ = fed(2, (1.0, 1.0), (1.1, 1.0), (1.1, 1.0))
    assert monitor.exhausted
    assert not fed(0, (1.0, 1.0), (1.1, 1.0), (1.1, 1.0))[0].exhausted
    assert not fed(2, (1.0, 1.0), (1.1, 1.0), (0.9, 1.0))[0].exhausted


def test_a_decision_gives_patience_back():
    monitor, _ = fed(2, (1.0, 1.0), (1.1, 1.0))
    monitor.decide("rank 1 -> 2")
    monitor.add(20, 1.2, 1.0)
    assert monitor.since_best == 1
    assert not monitor.exhausted
    monitor.add(30, 1.2, 1.0)
    assert monitor.exhausted


def test_weights_that_cannot_be_the_result_are_the_best_only_while_there_are_no_others():
    monitor = Monitor(1)
    best = [monitor.add(step, loss, 1.0, settled) for step, loss, settled in
            ((0, 1.0, False), (10, 2.0, False), (20, 3.0, True), (30, 2.5, True))]  # fmt: skip
    assert best == [True, False, True, True]
    assert not monitor.exhausted
    assert monitor.add(40, 2.6, 1.0) is False
    assert monitor.exhausted
