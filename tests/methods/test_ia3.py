"""(IA)^3's invariants: exact merging, also of biases; what it counts; what it refuses."""

from __future__ import annotations

import pytest
import torch

from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.method import trainable_parameters
from tests.methods.kit import DATA, attached, layers, shake
from tests.tiny import CONFIGS, logits, tiny, tiny_pairs


def test_it_counts_keys_values_and_inner_activations():
    _, model = attached(name="ia3")
    config = CONFIGS["llama-tied"]
    keys = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    assert trainable_parameters(model) == config["num_hidden_layers"] * (2 * keys + config["intermediate_size"])


def test_of_t5_it_counts_cross_attention_too():
    model = tiny_pairs()
    make_method({"name": "ia3"}).attach(model)
    k = model.encoder.layers[0].attention.k
    inner, wide = k.out_features, model.encoder.layers[0].mlp.down.in_features
    layers_of = len(model.encoder.layers), len(model.decoder.layers)
    assert trainable_parameters(model) == layers_of[0] * (2 * inner + wide) + layers_of[1] * (4 * inner + wide)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_merging_is_exact_with_biases_and_with_zeros(family):
    method, model = attached(family, name="ia3", exact=True)
    shake(model, 0.5)
    for layer in layers(model).values():
        layer.ia3_l.data.flatten()[0] = 0
        if layer.base.bias is not None:
            layer.base.bias.data.normal_()
    before = logits(model, DATA)
    assert not torch.allclose(before, logits(tiny(family).double(), DATA), atol=1e-3)
    method.merge(model)
    torch.testing.assert_close(logits(model, DATA), before, atol=1e-12, rtol=1e-12)


def test_scaling_the_input_of_down_is_scaling_the_activations():
    _, model = attached(name="ia3", targets=[], exact=True)
    mlp = model.layers[0].mlp
    shake(model, 0.5)
    x = torch.randn(3, mlp.up.in_features, dtype=torch.float64)
    wanted = mlp.down.base(torch.nn.functional.silu(mlp.gate(x)) * mlp.up(x) * mlp.down.ia3_l)
    torch.testing.assert_close(mlp(x), wanted)


def test_weight_decay_does_not_pull_to_zero():
    method, model = attached(name="ia3")
    assert [group["weight_decay"] for group in method.param_groups(model, 1e-3)] == [0.0]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"targets": ["kk"]}, r"method.targets: 'kk' name no linear layer; this model has down, gate, k"),
        ({"feedforward": ["wo"]}, r"method.feedforward: 'wo' name no linear layer; this model has down, gate, k"),
        ({"targets": ["k", "down"]}, r"method.feedforward = 'down' stands in method.targets too"),
        ({"targets": [], "feedforward": []}, r"both empty: nothing would train"),
    ],
)
def test_it_refuses_what_it_cannot_place(knobs, message):
    with pytest.raises(ConfigError, match=message):
        attached(name="ia3", **knobs)
