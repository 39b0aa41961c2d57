"""The pair that a change is exactly, where it is one: what conversion to plain LoRA goes by."""

from __future__ import annotations

import pytest
import torch

from microplane.methods.adapted_linear import set_parameter_
from tests.methods.kit import attached, layers, shake


@pytest.mark.parametrize(
    "knobs",
    [
        {"name": "lora", "rank": 3},
        {"name": "rslora", "rank": 3},
        {"name": "lora+", "rank": 3, "start": "pissa"},
        {"name": "vera", "rank": 5},
    ],
    ids=str,
)
def test_the_pair_is_the_change(knobs):
    _, model = attached(exact=True, **knobs)
    shake(model)
    for layer in layers(model).values():
        A, B = layer.low_rank()
        torch.testing.assert_close(B @ A, layer.delta())
        assert layer.delta().any()


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_where_it_is_no_pair_there_is_none(name):
    _, model = attached(name=name)
    assert all(layer.low_rank() is None for layer in layers(model).values())


def test_a_parameter_that_gets_another_shape_keeps_its_place_and_no_old_gradient():
    """An optimizer knows it by its identity, and a step with a gradient of another shape would fail."""
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    parameter.grad = torch.ones(3, 2)
    set_parameter_(parameter, torch.full((2, 2), 4.0))
    optimizer.step()
    assert parameter.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    set_parameter_(parameter, torch.zeros(2, 2))
    assert not parameter.any()
