"""The pair that a change is exactly, where it is one: what conversion to plain LoRA goes by."""

from __future__ import annotations

import pytest
import torch

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
