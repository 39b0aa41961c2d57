"""The Transformer family by itself: what its config refuses, how it begins, its sockets, dropout and formats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from microplane.errors import ModelError
from microplane.models.configs.transformer import TransformerConfig
from microplane.models.contract import linears
from microplane.models.transformer import Transformer
from microplane.nn.layers import LayerNorm
from microplane.nn.position import sinusoids
from microplane.nn.rows import Pairs, Rows
from tests.tiny import MARIAN, tiny_pairs

PAIRS = Pairs(Rows.of([[1, 2, 3], [4, 5, 6, 7, 8], [9]]), Rows.of([[96, 9, 8], [96], [96, 3, 4, 5]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": None}, "d_model = None: expected a whole number above 0"),
        ({"dropout": 1.0}, "dropout = 1.0: expected at least 0 and below 1"),
        ({"pad_token_id": -1}, "pad_token_id = -1: expected the id of a token"),
        ({"pad_token_id": 97}, "pad_token_id = 97, beyond a vocabulary of 97"),
        ({"decoder_start_token_id": 200}, "decoder_start_token_id = 200, beyond a vocabulary of 97"),
        ({"decoder_attention_heads": 5}, "d_model = 32 is not a multiple of decoder_attention_heads = 5"),
        (
            {"activation_function": "tanh"},
            "the activation 'tanh' in config.json is not supported (activation_function)",
        ),
        ({"normalize_before": True}, "normalize_before = True in config.json is not supported; only False is"),
        ({"static_position_embeddings": False}, "static_position_embeddings = False in config.json is not supported"),
        ({"scale_embedding": 1}, "scale_embedding = 1: expected true or false"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ModelError) as caught:
        TransformerConfig.from_hf(MARIAN | changes)
    assert message in str(caught.value)


def test_a_config_comes_back_as_it_went():
    config = TransformerConfig.from_hf(MARIAN | {"decoder_layers": 3, "attention_dropout": 0.2})
    assert TransformerConfig.from_hf(config.to_hf()) == config


def test_initial_weights_are_xavier_and_the_same_for_a_seed():
    first, again, other = (Transformer.from_hf(MARIAN).init_weights(seed) for seed in (3, 3, 4))
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)
    for module in first.modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()
        if isinstance(module, LayerNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
    assert not first.embed.weight[96].any()  # the pad's
    assert first.embed.weight[:96].std().item() == pytest.approx(32**-0.5, rel=0.05)


def test_all_linears_have_their_roles():
    found = linears(tiny_pairs("marian"))
    inner = {f"{part}.{role}" for part in ("attention", "cross_attention") for role in "qkvo"} | {"mlp.up", "mlp.down"}
    assert {name.split(".", 3)[3] for name in found if name.startswith("decoder.layers.1.")} == inner
    assert len(found) == 2 * 6 + 2 * 10
    assert found["encoder.layers.1.mlp.up"].layer == 1


def test_positions_are_the_papers_but_for_their_order():
    table = sinusoids(torch.arange(40), 8, 39)
    for position in (0, 1, 39):
        for i in range(4):
            angle = position / 10_000 ** (2 * i / 8)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_positions_that_generation_asked_for_first_can_train():
    with torch.inference_mode():
        sinusoids(torch.tensor([5]), 6, 5)
    weight = torch.ones(1, 6, requires_grad=True)
    (weight * sinusoids(torch.tensor([5]), 6, 5)).sum().backward()
    torch.testing.assert_close(weight.grad, sinusoids(torch.tensor([5]), 6, 5))


class Prefix(nn.Module):
    def __init__(self):
        super().__init__()
        self.keys, self.values = (nn.Parameter(torch.randn(4, 3, 8)) for _ in range(2))

    def forward(self):
        return self.keys, self.values


@pytest.mark.parametrize("place", ["encoder.layers.0.attention", "decoder.layers.1.attention", "cross_attention"])
def test_a_prefix_is_seen_by_every_row_with_a_cache_and_without(place):
    torch.manual_seed(0)
    model = tiny_pairs("marian")
    plain = model(PAIRS)
    path = place if "." in place else f"decoder.layers.0.{place}"
    model.get_submodule(path).prefix = Prefix()
    hidden = model(PAIRS)
    first = PAIRS.target.last - torch.tensor(PAIRS.target.lengths) + 1
    assert ((hidden - plain)[first].abs().amax(1) > 1e-3).all()
    hidden.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.get_submodule(path).prefix.parameters())
    with torch.no_grad():
        cache, begun = model.start_generation([ids.tolist() for ids in PAIRS.source.ids.split(PAIRS.source.lengths)])
        stepped = model(Rows.of(begun, starts=cache.lengths), cache)
    torch.testing.assert_close(stepped, hidden[first].detach(), rtol=1e-4, atol=1e-5)


def test_sockets_see_what_is_added_to_the_stream():
    model, seen = tiny_pairs("marian"), []
    for name, module in model.named_modules():
        if name.endswith(("attention_socket", "mlp_socket")):
            assert type(module) is nn.Identity
            module.register_forward_hook(lambda module, args, out, name=name: seen.append((name, tuple(out.shape))))
    words = []
    model.prompt_socket.register_forward_hook(lambda module, args, out: words.append(out[0]))
    model(PAIRS)
    assert len(seen) == 2 * 2 + 2 * 3
    assert all(shape == ((9, 32) if name.startswith("encoder") else (8, 32)) for name, shape in seen)
    assert torch.equal(words[0], model.embedded(PAIRS.source.ids))  # of the source alone, without positions


def test_dropout_falls_in_training_alone_and_goes_by_the_seed():
    model = Transformer.from_hf(MARIAN | {"attention_dropout": 0.2, "activation_dropout": 0.2}).init_weights(0)
    calm = model.eval()(PAIRS)
    assert torch.equal(model(PAIRS), calm)
    model.train()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(PAIRS))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], calm)


def test_activations_keep_to_the_compute_format():
    model = tiny_pairs("marian")
    exact = model(PAIRS)
    model.compute = torch.bfloat16
    hidden = model(PAIRS)
    assert hidden.dtype == model.logits(hidden).dtype == torch.bfloat16
    assert (hidden.float() - exact).abs().max() < 0.2
    assert (hidden.float() - exact).abs().mean() < 0.02
