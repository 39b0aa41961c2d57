"""What a config.json of the T5 family means, and what it is refused for."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from microplane.errors import ModelError
from microplane.models.configs.t5 import FEED_FORWARD, T5Config
from microplane.models.files.load import load_model, save_model
from microplane.nn.rows import Rows
from tests.tiny import PAIR_CONFIGS, T5_SMALL, tiny_pairs

FAMILIES = ["t5", "t5-v1.0"]


def told(**fields):
    return {name: x for name, x in (T5_SMALL | fields).items() if x is not ...}


# model_type, tie_word_embeddings, scale_decoder_outputs -> whether the output is scaled
SCALES = [
    ("t5", ..., ..., True),  # v1.0 says nothing
    ("t5", True, ..., True),
    ("t5", False, ..., False),  # v1.1 and FLAN-T5, of transformers 4
    ("t5", True, False, False),  # the same of transformers 5
    ("t5", True, True, True),
    ("umt5", False, ..., False),
    ("umt5", True, ..., True),
    ("mt5", True, ..., False),
    ("mt5", False, ..., False),
]


@pytest.mark.parametrize(("kind", "tied", "scale", "expected"), SCALES)
def test_when_the_output_is_scaled(kind, tied, scale, expected):
    fields = told(architectures=..., model_type=kind, tie_word_embeddings=tied, scale_decoder_outputs=scale)
    config = T5Config.from_hf(fields)
    assert config.scaled is expected
    assert T5Config.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("holds", ["no head", "an equal head", "another head"])
def test_the_tensors_decide_whether_the_head_is_the_embedding(says, holds, tmp_path):
    model = tiny_pairs("t5-v1.0")
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if holds != "no head":
        tensors["lm_head.weight"] = tensors["shared.weight"].clone() + (holds == "another head")
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": says}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path).config.tied is (holds != "another head")


@pytest.mark.parametrize("copy", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_embedding_may_stand_under_another_name(family, copy, tmp_path):
    """And beside it a bias of the first cross-attention that was stored and never used."""
    model = tiny_pairs(family)
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[copy] = tensors.pop("shared.weight")
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(8, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    again = load_model(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_every_feed_forward_layer_comes_back(name):
    config = T5Config.from_hf(told(feed_forward_proj=name))
    assert (config.gated, config.activation) == FEED_FORWARD[name]
    assert T5Config.from_hf(config.to_hf()) == config


WRONG = [
    ({"d_model": ...}, r"d_model = None: expected a whole number above 0"),
    ({"num_heads": 0, "d_ff": "big"}, r"(?s)d_ff = 'big'.*num_heads = 0: expected"),
    ({"feed_forward_proj": "gated-mish"}, r"feed_forward_proj = 'gated-mish': expected one of relu, .*gated-gelu"),
    ({"feed_forward_proj": 3}, r"feed_forward_proj = 3: expected one of"),
    ({"dropout_rate": 1.0}, r"dropout_rate = 1.0: expected a number from 0 to below 1"),
    ({"relative_attention_num_buckets": 7}, r"relative_attention_num_buckets = 7: expected an even number above 2"),
    ({"relative_attention_num_buckets": 64}, r"max_distance = 20 must be above half of .*num_buckets = 64"),
    ({"decoder_start_token_id": 97}, r"decoder_start_token_id = 97 in config.json is no token of vocab_size = 97"),
    ({"decoder_start_token_id": -1}, r"decoder_start_token_id = -1: expected the id of a token"),
    ({"tie_word_embeddings": "no"}, r"tie_word_embeddings = 'no': expected true or false"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        T5Config.from_hf(told(**fields))


def test_a_type_alone_and_an_architecture_alone_are_known():
    assert T5Config.from_hf(told(architectures=...)).architecture == "T5ForConditionalGeneration"
    only = told(model_type=..., architectures=["UMT5ForConditionalGeneration"])  # as umT5's own file
    assert T5Config.from_hf(only).bias_everywhere


@pytest.mark.parametrize("family", FAMILIES)
def test_new_weights_are_as_t5_begins(family):
    config = PAIR_CONFIGS[family] | {"d_model": 256, "d_kv": 64, "num_heads": 3, "d_ff": 512, "vocab_size": 400}
    model = type(tiny_pairs()).from_hf(config).init_weights(3)
    block = model.decoder.layers[0]
    stds = {
        model.embed: 1.0,
        block.attention.q: (256 * 64) ** -0.5,
        block.cross_attention.k: 256**-0.5,
        block.attention.v: 256**-0.5,
        block.attention.o: 192**-0.5,
        block.mlp.up: 256**-0.5,
        block.mlp.down: 512**-0.5,
    }
    stds |= {} if model.head is None else {model.head: 256**-0.5}
    for module, std in stds.items():
        assert module.weight.std().item() == pytest.approx(std, rel=0.05)
    assert set(model.encoder.norm.weight.tolist()) == {1.0}
    again = type(model).from_hf(config).init_weights(3)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())


def test_what_a_file_leaves_out_follows_from_what_it_says():
    config = T5Config.from_hf(told(num_decoder_layers=..., decoder_start_token_id=..., pad_token_id=7))
    assert (config.num_decoder_layers, config.decoder_start) == (config.num_layers, 7)
    config = T5Config.from_hf(told(num_layers=2, num_decoder_layers=5, decoder_start_token_id=3, pad_token_id=7))
    assert (config.num_layers, config.num_decoder_layers, config.decoder_start) == (2, 5, 3)
    assert T5Config.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(("far", "fits"), [(16, False), (17, True)])
def test_distances_go_beyond_those_that_are_told_exactly(far, fits):
    fields = told(relative_attention_num_buckets=32, relative_attention_max_distance=far)
    if fits:
        assert T5Config.from_hf(fields).max_distance == far
        return
    with pytest.raises(ModelError, match="relative_attention_max_distance = 16 must be above half of"):
        T5Config.from_hf(fields)


def test_what_a_stack_gives_is_dropped_as_what_it_takes():
    model = tiny_pairs("t5").train()
    stack, rows = model.encoder, Rows.of([[5, 6, 7, 8]])
    for block in stack.layers:
        block.forward = lambda x, *rest: x
    stack.dropout = torch.nn.Dropout(0.5)
    torch.manual_seed(0)
    given = torch.ones(4, model.config.hidden_size)
    told = stack(given, rows)
    assert 0.3 < (told == 0).float().mean() - 0.5 * 0.5 < 0.7, "twice: a quarter of it is left"
