"""The same methods on encoder-decoders and encoders: they ask for roles and know no family."""

from __future__ import annotations

import pytest
import torch

from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.method import trainable
from microplane.nn.rows import Pairs, Rows
from tests.tiny import tiny_encoder, tiny_pairs

IDS = [[5, 9, 77, 31, 40, 2, 8], [20, 3, 90], [17] * 20]
FAMILIES = {"t5": tiny_pairs, "bert": tiny_encoder, "modernbert": lambda: tiny_encoder("modernbert")}
METHODS = [
    {"name": "lora", "rank": 3},
    {"name": "lora", "rank": 3, "start": "pissa"},
    {"name": "lora+", "rank": 3, "start": "lora_ga"},
    {"name": "lora", "rank": 2, "start": "eva"},
    {"name": "dora", "rank": 3},
    {"name": "vera", "rank": 5},
    {"name": "ia3"},
]


def hidden(model):
    rows = Rows.of(IDS)
    return model(Pairs(rows, Rows.of([row[:4] for row in IDS])) if model.KIND == "encoder-decoder" else rows)


@pytest.mark.parametrize("knobs", METHODS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_at_the_base_trains_everything_it_adds_and_merges(family, knobs):
    method, model = make_method(knobs), FAMILIES[family]()
    if knobs["name"] == "ia3" and family == "modernbert":  # keys and values are parts of one matrix there
        with pytest.raises(ConfigError, match="'k', 'v' name no linear layer; this model has .*qkv"):
            method.attach(model)
        return
    with torch.no_grad():
        before = hidden(model)
    method.attach(model)
    method.init_from_data(model, [lambda: hidden(model).square().mean()])
    with torch.no_grad():
        torch.testing.assert_close(hidden(model), before, atol=1e-5, rtol=1e-5)
    for parameter in trainable(model).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    wanted = hidden(model)
    wanted.square().mean().backward()
    assert all(parameter.grad.any() for parameter in trainable(model).values())
    assert not torch.allclose(wanted, before, atol=1e-2)
    state = {name: tensor.detach().clone() for name, tensor in method.state(model).items()}
    fresh = FAMILIES[family]()
    method.attach(fresh)
    method.load(fresh, state)
    torch.testing.assert_close(hidden(fresh), wanted, atol=0, rtol=0)
    method.merge(model)
    torch.testing.assert_close(hidden(model), wanted, atol=5e-4, rtol=1e-4)  # lora_ga has large factors at its start
