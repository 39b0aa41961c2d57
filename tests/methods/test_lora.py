"""LoRA's and rsLoRA's invariants."""

from __future__ import annotations

import math

import pytest
import torch

from microplane.methods.method import trainable, trainable_parameters
from tests.methods.kit import attached, layers, loss, shake


def test_at_first_only_b_has_a_gradient():
    _, model = attached(name="lora", rank=3)
    loss(model).backward()
    for layer in layers(model).values():
        assert not layer.lora_A.grad.any()
        assert layer.lora_B.grad.any()


def test_the_change_has_the_rank_and_the_formula_counts_what_trains():
    _, model = attached(name="lora", rank=3, exact=True)
    shake(model)
    for layer in layers(model).values():
        assert torch.linalg.matrix_rank(layer.delta()) == 3
    shapes = [(layer.in_features, layer.out_features) for layer in layers(model).values()]
    assert trainable_parameters(model) == sum(3 * (a + b) for a, b in shapes)


def test_gradients_are_those_of_the_formula():
    """dL/dB = s G A^T and dL/dA = s B^T G, with G the gradient of the weight that the pair changes."""
    _, model = attached(name="lora", rank=3, alpha=5, exact=True)
    shake(model)
    loss(model).backward()
    _, twin = attached(name="full", exact=True)
    with torch.no_grad():
        for name, layer in layers(model).items():
            twin.get_submodule(name).weight += layer.delta()
    loss(twin).backward()
    for name, layer in layers(model).items():
        G = twin.get_submodule(name).weight.grad
        torch.testing.assert_close(layer.lora_B.grad, layer.scale * G @ layer.lora_A.T)
        torch.testing.assert_close(layer.lora_A.grad, layer.scale * layer.lora_B.T @ G)


def test_rslora_changes_sqrt_r_times_as_much_as_lora():
    _, plain = attached(name="lora", rank=9, alpha=4, exact=True)
    _, stable = attached(name="rslora", rank=9, alpha=4, exact=True)
    shake(plain)
    stable.load_state_dict(plain.state_dict())
    for name, layer in layers(stable).items():
        torch.testing.assert_close(layer.delta(), 3 * layers(plain)[name].delta())


@pytest.mark.parametrize(("name", "power"), [("rslora", 0), ("lora", -1)])
def test_the_first_step_of_rslora_does_not_shrink_as_the_rank_grows(name, power):
    """After one step B = -lr s G A^T, so the change is -lr s^2 G A^T A: its size goes with s^2 r."""

    def change(rank):
        _, model = attached(name=name, rank=rank, alpha=8, targets=["down"], exact=True)
        loss(model).backward()
        torch.optim.SGD(trainable(model).values(), lr=1.0).step()
        return math.sqrt(sum(layer.delta().square().sum().item() for layer in layers(model).values()))

    for rank in (64, 128):  # from where A^T A is near its mean
        assert change(2 * rank) / change(rank) == pytest.approx(2**power, rel=0.2)
