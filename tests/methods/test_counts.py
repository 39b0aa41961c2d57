"""The numbers that the method became known by come out of the code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microplane.methods import make_method
from microplane.methods.method import trainable, trainable_parameters


class Frame(nn.Module):
    """Linear layers with roles and nothing else, as many as wanted."""

    def __init__(self, width: int, count: int, roles: tuple[str, ...]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(count))
        for layer in self.layers:
            for role in roles:
                layer.add_module(role, nn.Linear(width, width, bias=False))

    def hf_names(self):
        return {name: name for name, _ in self.named_parameters()}


def test_a_square_of_512_at_rank_1_trains_one_weight_in_256():
    """1,024 float32 are 4,096 bytes. The founding text gives 32,768, which is their number in bits."""
    model = Frame(512, 1, ("q",))
    make_method({"name": "lora", "rank": 1}).attach(model)
    assert model.layers[0].q.base.weight.numel() == 262_144
    assert trainable_parameters(model) == 1_024
    assert 262_144 / trainable_parameters(model) == 256
    assert sum(tensor.nbytes for tensor in trainable(model).values()) == 4_096
    assert 8 * 4_096 == 32_768


def test_gpt3_at_rank_4_on_q_and_v_without_allocating_it():
    """arXiv 2106.09685 says 10,000 times fewer and 35 MB. Exactly, 175 billion over 18.9 million is 9,272, and the
    factors in float16 are 37.7 MB, or 36 MiB; the 350 GB that it compares them with are the weights alone in float16.
    """
    width, depth = 12_288, 96
    with torch.device("meta"):
        model = Frame(width, depth, ("q", "k", "v", "o"))
        make_method({"name": "lora", "rank": 4, "targets": ["q", "v"]}).attach(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    trained = trainable_parameters(model)
    assert trained == 18_874_368 == depth * 2 * 4 * (width + width)
    attention = 4 * depth * width**2
    assert sum(p.numel() for p in model.parameters()) - trained == attention
    # The rest of the published shape: two feed-forward matrices of 4 x width, 50,257 tokens, 2,048 positions.
    whole = attention + 8 * depth * width**2 + (50_257 + 2_048) * width
    assert whole == pytest.approx(175e9, rel=0.005)
    assert 175e9 / trained == pytest.approx(9_272, abs=1)
    assert 2 * trained == 37_748_736
    assert 2 * trained / 2**20 == 36
    assert 2 * 175e9 == 350e9
    assert 350e9 / (2 * trained) == pytest.approx(9_272, abs=1)
