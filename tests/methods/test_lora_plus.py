"""LoRA+'s invariants: two rates, and what they do to a step."""

from __future__ import annotations

import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.training.optim import make_optimizer
from tests.methods.kit import attached, layers, loss, shake


def sgd(method, model):
    loss(model).backward()
    torch.optim.SGD(method.param_groups(model, 0.5)).step()


def test_rates_differ_by_the_ratio_and_b_is_found_by_asking():
    method, model = attached(name="lora+", rank=3, ratio=7)
    slow, fast = method.param_groups(model, 1e-3)
    assert fast["lr"] == pytest.approx(7 * slow["lr"])
    assert {id(p) for p in fast["params"]} == {id(layer.lora_B) for layer in layers(model).values()}
    assert {id(p) for p in slow["params"]} == {id(layer.lora_A) for layer in layers(model).values()}


def test_a_step_of_b_is_the_ratio_times_as_long():
    models = [attached(name="lora+", rank=3, ratio=ratio, exact=True) for ratio in (1, 16)]
    for _, model in models:
        torch.manual_seed(1)
        shake(model)
    before = [{name: layer.lora_B.detach().clone() for name, layer in layers(model).items()} for _, model in models]
    for pair in models:
        sgd(*pair)
    one, other = (layers(model) for _, model in models)
    for name in one:
        torch.testing.assert_close(one[name].lora_A, other[name].lora_A)
        step = one[name].lora_B - before[0][name]
        torch.testing.assert_close(other[name].lora_B - before[1][name], 16 * step)


def test_the_first_change_of_the_weight_is_the_ratio_times_as_large():
    models = [attached(name="lora+", rank=3, ratio=ratio, exact=True) for ratio in (1, 16)]
    for pair in models:
        sgd(*pair)
    one, other = (layers(model) for _, model in models)
    for name in one:
        torch.testing.assert_close(other[name].delta(), 16 * one[name].delta())


def test_weight_decay_falls_on_the_factors_and_not_on_vectors():
    method, model = attached(name="lora+", rank=3, ratio=4)
    model.norm.weight.requires_grad_(True)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-3, weight_decay=0.1))
    rates = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert rates == [(1e-3, 0.1, 14), (4e-3, 0.1, 14), (4e-3, 0.0, 1)]
