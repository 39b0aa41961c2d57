"""Dropout from cheap random words: the law it draws from, its gradient, and what decides it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from microplane.nn.ops.dropout import STEPS, Dropout, draw_seed, dropout, dropout_mask, dropout_reference, keep_steps


def mask_of(shape, p):
    return dropout_mask(torch.Size(shape), p, draw_seed())


def seeded(function, seed=0):
    torch.manual_seed(seed)
    return function()


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_the_kept_share_is_the_probability(p):
    n = 200_000
    mask = seeded(lambda: mask_of([n], p))
    sigma = (p * (1 - p) / n) ** 0.5
    assert abs(mask.double().mean().item() - (1 - p)) < 4 * sigma
    for distance in (1, 2, 64, n // 2):  # independent, the two out of one word too
        both = (mask[distance:] & mask[:-distance]).double().mean().item()
        assert abs(both - (1 - p) ** 2) < 4 * ((1 - p) ** 2 / (n - distance)) ** 0.5


def test_masks_of_neighbouring_seeds_are_independent():
    n, p = 200_000, 0.5
    masks = [dropout_mask(torch.Size([n]), p, seed) for seed in (7, 8, 7 + (1 << 32), 7 << 32)]
    for i, first in enumerate(masks):
        for second in masks[:i]:
            assert abs((first == second).double().mean().item() - 0.5) < 4 * (0.25 / n) ** 0.5


def test_the_expectation_is_the_input():
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)
    rounds, p = 4000, 0.3
    mean = seeded(lambda: dropout(x.expand(rounds, 50), p)).mean(0)
    assert ((mean - x).abs() <= 4 * x.abs() * (p / (1 - p) / rounds) ** 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4, 7)])
def test_values_and_gradient_are_the_references(way, dtype, shape):
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    weight = torch.randn(shape, dtype=dtype)
    y = seeded(lambda: dropout(x, 0.4))
    mask = seeded(lambda: mask_of(x.shape, 0.4))
    wanted = dropout_reference(x, mask, 0.4)
    assert y.dtype == dtype
    assert torch.equal(y, wanted)
    (grad,) = torch.autograd.grad(y, x, weight)
    assert torch.equal(grad, torch.autograd.grad(wanted, x, weight)[0])
    assert torch.equal(grad, mask * (weight * (STEPS / keep_steps(0.4))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_added_is_added_to_the_result(way, dtype, training):
    x, other = (torch.randn(31, 77, dtype=dtype, requires_grad=True) for _ in range(2))
    layer, weight = Dropout(0.3).train(training), torch.randn(31, 77, dtype=dtype)
    y, plain = seeded(lambda: layer(x, added=other)), seeded(lambda: layer(x)) + other
    torch.testing.assert_close(y, plain, **({"rtol": 0.016, "atol": 0.02} if dtype == torch.bfloat16 else {}))
    grads, wanted = (torch.autograd.grad(result, [x, other], weight) for result in (y, plain))
    assert all(torch.equal(grad, reference) for grad, reference in zip(grads, wanted, strict=True))


def test_a_transposed_input_and_gradient():
    x = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(6, 4)
    y = seeded(lambda: dropout(x.t(), 0.5))
    mask = seeded(lambda: mask_of([4, 6], 0.5))
    assert torch.equal(y, dropout_reference(x.t(), mask, 0.5))
    (grad,) = torch.autograd.grad(y, x, weight.t())
    assert torch.equal(grad, torch.where(mask.t(), weight * 2, 0))


def test_the_input_is_not_changed():
    x = torch.ones(64)
    seeded(lambda: dropout(x, 0.5))
    assert torch.equal(x, torch.ones(64))


def test_torchs_seed_decides_and_calls_differ():
    x = torch.ones(500)
    first, second = seeded(lambda: [dropout(x, 0.5), dropout(x, 0.5)])
    again = seeded(lambda: [dropout(x, 0.5), dropout(x, 0.5)])
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, seeded(lambda: dropout(x, 0.5), seed=1))


def test_a_state_of_torchs_generator_is_all_that_a_resume_needs():
    x = torch.ones(500)
    torch.manual_seed(3)
    dropout(x, 0.5)
    state = torch.get_rng_state()
    wanted = dropout(x, 0.5)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.5), wanted)


def test_activation_checkpointing_draws_the_same_mask_again():
    x = torch.randn(300, requires_grad=True)
    y = checkpoint(lambda x: dropout(x.exp(), 0.5).square(), x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad == 0, y == 0)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (0.0, False)])
def test_without_dropout_it_is_the_input_itself(p, training):
    x = torch.randn(9)
    state = torch.get_rng_state()
    assert dropout(x, p, training) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_at_the_borders_of_probability_all_stays_finite(p):
    assert seeded(lambda: dropout(torch.ones(1000), p)).isfinite().all()


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_a_probability_out_of_range_is_refused(p):
    with pytest.raises(AssertionError, match="at least 0 and below 1"):
        dropout(torch.ones(3), p)


def test_the_module_follows_its_mode():
    layer, x = Dropout(0.5), torch.ones(100)
    assert torch.equal(seeded(lambda: layer(x)), seeded(lambda: dropout(x, 0.5)))
    assert layer.eval()(x) is x
    assert repr(layer) == "Dropout(p=0.5)"
