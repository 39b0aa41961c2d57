"""The encoder family by itself: configs, sockets, prefixes, dropout, names of older checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from microplane.errors import ModelError
from microplane.forecast.blocks import _smaller as smaller
from microplane.methods import make_method
from microplane.methods.method import attach_method
from microplane.models.configs.encoder import EncoderConfig
from microplane.models.configs.head import head_of
from microplane.models.contract import hf_names, linears
from microplane.models.encoder import Encoder
from microplane.models.families import family_of
from microplane.models.files.load import load_model, save_model
from microplane.nn.attention import MaskSpec
from microplane.nn.prompt_socket import PromptSocket
from microplane.nn.rows import Rows
from tests.tiny import ENCODER_CONFIGS, tiny_encoder

ROWS = Rows.of([[5, 6, 7, 8, 9], [10], [11, 12, 13]])
ROLES = {"modernbert": {"qkv", "o", "gate_up", "down"}}  # of the others:
ROLES |= {name: {"q", "k", "v", "o", "gate", "up", "down"} for name in ("nomic", "eurobert")}
USUAL = {"q", "k", "v", "o", "up", "down"}


@pytest.fixture(params=ENCODER_CONFIGS)
def family(request):
    return request.param


def test_rows_do_not_influence_each_other(family):
    model = tiny_encoder(family)
    whole = model(ROWS).split(ROWS.lengths)
    for row, expected in zip(ROWS.ids.split(ROWS.lengths), whole, strict=True):
        torch.testing.assert_close(model(Rows.of([row.tolist()])), expected)


def test_linears_have_their_roles(family):
    sites = linears(tiny_encoder(family))
    assert {site.role for site in sites.values()} == ROLES.get(family, USUAL)
    assert all(site.layer is not None for site in sites.values())


def test_low_rank_updates_train_every_linear_and_merge(family):
    model, method = tiny_encoder(family), make_method({"name": "lora", "rank": 2})
    before = model(ROWS)
    method.attach(model)
    assert torch.equal(model(ROWS), before)
    model(ROWS).square().sum().backward()
    assert len(method.state(model)) == 2 * len(linears(model))
    for parameter in method.state(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    changed = model(ROWS)
    assert not torch.allclose(changed, before)
    method.merge(model)
    torch.testing.assert_close(model(ROWS), changed, rtol=1e-4, atol=1e-4)


def test_sockets_stand_before_the_sums(family):
    """A socket that gives nothing switches its sub-layer off, and the prompt socket sees words alone."""
    model = tiny_encoder(family)
    seen = []
    model.prompt_socket = Recorder(seen)
    model(ROWS)
    assert torch.equal(seen[0], model.embed(ROWS.ids))
    for block in model.layers:
        block.attention_socket, block.mlp_socket = Nothing(), Nothing()
    model.conv = None
    rows = Rows.of([[5, 6], [7, 6]])
    hidden = model(rows)
    torch.testing.assert_close(hidden[1], hidden[3])  # nothing mixes tokens any more


class Recorder(PromptSocket):
    def __init__(self, seen: list):
        super().__init__()
        self.seen = seen

    def forward(self, x, rows, starts=None):
        self.seen.append(x)
        return x, rows


class Nothing(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_prefix_is_seen_as_tokens_before_the_row_would_be(family):
    model = tiny_encoder(family)
    attention, width = model.layers[0].attention, model.config.hidden_size
    before, x = torch.randn(3, width), torch.randn(5, width)
    longer = Rows.of([[0] * 8])
    expected = attention(torch.cat([before, x]), MaskSpec(longer, causal=False), None)[3:]
    parts = (
        attention.qkv(before).chunk(3, -1)
        if family == "modernbert"
        else (None, attention.k(before), attention.v(before))
    )
    k, v = (part.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1) for part in parts[1:])  # (H, P, Dh)
    attention.prefix = Given(k, v)
    torch.testing.assert_close(attention(x, MaskSpec(Rows.of([[0] * 5]), causal=False), None), expected)


class Given(nn.Module):
    def __init__(self, k, v):
        super().__init__()
        self.k, self.v = k, v

    def forward(self):
        return self.k, self.v


def test_dropout_while_training_only(family):
    model = tiny_encoder(family)
    if family == "modernbert":
        config = replace(model.config, embed_dropout=0.1, attention_dropout=0.1, mlp_dropout=0.1)
        model = Encoder(config).init_weights()
    if family in ("nomic", "eurobert"):  # whose training had none
        model = Encoder(replace(model.config, attention_dropout=0.1)).init_weights()
    model.train()
    assert not torch.equal(model(ROWS), model(ROWS))
    model.eval()
    assert torch.equal(model(ROWS), model(ROWS))


@pytest.mark.parametrize(
    ("family", "dropped"),
    [("distilbert", [False, True]), ("albert", [True, False] * 2)],  # ALBERT's one block is both its layers
)
def test_each_family_drops_the_outputs_that_transformers_drops(family, dropped):
    model, seen = Encoder(replace(tiny_encoder(family).config, attention_dropout=0.0)).init_weights().train(), []
    block = model.layers[0]
    block.attention_socket.register_forward_hook(lambda _module, given, _made: seen.append(given[0]))
    block.mlp_socket.register_forward_hook(lambda _module, given, _made: seen.append(given[0]))
    model(ROWS)
    assert [bool((x == 0).any()) for x in seen] == dropped


def test_dropouts_of_zero_change_nothing(family):
    model = tiny_encoder(family)
    still = replace(model.config, embed_dropout=0.0, hidden_dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
    other = Encoder(still).init_weights().train()
    assert torch.equal(other(ROWS), model(ROWS))


def test_it_writes_no_text():
    model = tiny_encoder()
    for ask in (lambda: model.logits(model(ROWS)), lambda: model.head_weight, lambda: model.start_generation([[1]])):
        with pytest.raises(ModelError, match="BertModel is an encoder and writes no text"):
            ask()


def test_older_names_are_read(tmp_path):
    """Of checkpoints from before 2020, and what such a file holds beside the model."""
    model = tiny_encoder("bert")
    save_model(model, tmp_path)
    state = {f"bert.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    for name in list(state):
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[old] = state.pop(name)
    state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    state["cls.predictions.bias"] = torch.zeros(97)
    state["bert.pooler.dense.weight"] = torch.ones(32, 32)
    save_file(state, tmp_path / "model.safetensors")
    again = load_model(tmp_path)
    assert torch.equal(again(ROWS), model(ROWS))
    assert list(again.extra_weights) == ["pooler.dense.weight"]
    save_model(again, tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")["pooler.dense.weight"], torch.ones(32, 32))


def test_what_is_missing_or_foreign_is_listed(tmp_path):
    save_model(tiny_encoder("bert"), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["stranger"] = state.pop("encoder.layer.1.output.dense.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    assert "1 missing: encoder.layer.1.output.dense.bias" in str(caught.value)
    assert "1 unexpected: stranger" in str(caught.value)


def test_names_cover_all_parameters(family):
    model = tiny_encoder(family)
    assert hf_names(model).keys() == model.state_dict().keys()
    assert len(set(hf_names(model).values())) == len(hf_names(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size = 32 is not a multiple of num_attention_heads = 5"),
        ({"is_decoder": True}, "is_decoder = true in config.json is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' .* only 'absolute'"),
        ({"hidden_act": "mish"}, r"the activation 'mish' in config.json is not supported \(hidden_act\)"),
        ({"hidden_act": ["gelu"]}, r"the activation \['gelu'\] in config.json is not supported"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob = 1.0: expected a number from 0 to below 1"),
        ({"hidden_size": 0}, "hidden_size = 0: expected a whole number above 0"),
        ({"type_vocab_size": -1}, "type_vocab_size = -1: expected a whole number, 0 or more"),
        ({"pad_token_id": -1}, "pad_token_id = -1: expected a whole number, 0 or more"),
    ],
)
def test_settings_that_do_not_work_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        EncoderConfig.from_hf(ENCODER_CONFIGS["bert"] | changes)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("roberta", {"pad_token_id": 64}, "max_position_embeddings = 64 .* positions begin at 65"),
        ("distilbert", {"dim": 0}, "dim = 0: expected a whole number above 0"),
        ("distilbert", {"n_heads": 5}, "dim = 32 is not a multiple of n_heads = 5"),
        ("distilbert", {"activation": "mish"}, r"the activation 'mish' .* \(activation\)"),
        ("electra", {"embedding_size": 0}, "embedding_size = 0: expected a whole number above 0"),
        ("albert", {"num_hidden_groups": 0}, "num_hidden_groups = 0: expected a whole number above 0"),
        ("albert", {"classifier_dropout_prob": 2}, "classifier_dropout_prob = 2: expected a number from 0 to below 1"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "num_buckets = 16 .* only 32 is"),
        ("deberta", {"pos_att_type": "c2q"}, "pos_att_type = 'c2q' .* expected some of c2p and p2c"),
        ("deberta", {"relative_attention": False}, "relative_attention = False .* only both together"),
        ("deberta", {"position_buckets": 3}, "position_buckets = 3 .* do not fit 64 distances"),
        ("deberta", {"position_buckets": 8, "max_relative_positions": 5}, "do not fit 5 distances"),
        ("deberta", {"position_buckets": "8"}, "position_buckets = '8' .* whole numbers"),
        ("deberta", {"embedding_size": 16}, "embedding_size = 16 .* only 32 is"),
        ("deberta", {"pooler_dropout": 0.1}, "pooler_dropout = 0.1 .* only 0 is"),
        ("deberta", {"conv_kernel_size": 4}, "'conv_kernel_size': 4.* not supported"),
        ("modernbert", {"layer_types": ["full_attention"]}, r"layer_types = .* expected 3 entries"),
        ("modernbert", {"rope_parameters": {"full_attention": 3}}, "full_attention = 3: expected an object"),
    ],
)
def test_settings_of_a_family_that_do_not_work_are_refused(family, changes, message):
    with pytest.raises(ModelError, match=message):
        EncoderConfig.from_hf(ENCODER_CONFIGS[family] | changes)


def test_the_forecast_can_make_it_narrower(family):
    """As it does with blocks that are too large to be tried."""
    fields = ENCODER_CONFIGS[family] | {"pooler_hidden_size": 32}
    narrow = Encoder.from_hf(smaller(fields, 1, 2)).config
    assert (narrow.num_layers, narrow.num_heads, narrow.hidden_size, narrow.intermediate_size) == (1, 2, 16, 24)


def test_context_leaves_out_the_places_before_the_first(family):
    assert EncoderConfig.from_hf(ENCODER_CONFIGS[family]).context == {"roberta": 62, "mpnet": 62}.get(family, 64)


def test_layers_that_are_one_block_are_counted_from_below():
    fields = ENCODER_CONFIGS["albert"] | {"num_hidden_layers": 5, "num_hidden_groups": 2}
    model = Encoder.from_hf(fields).init_weights(1).eval()
    assert model.config.block_of_layer == (0, 0, 0, 1, 1)
    assert len(model.layers) == 2
    assert [model.layers_below(block) for block in range(3)] == [0, 3, 5]
    attach_method(make_method({"name": "last-n", "n": 1}), model)
    assert model.frozen == 3
    assert not any(p.requires_grad for p in model.layers[0].parameters())
    torch.testing.assert_close(model.upper(model.lower(ROWS, 3), ROWS, 3), model(ROWS))
    model.train()
    assert (model.layers[0].training, model.layers[1].training) == (False, True)


def test_an_albert_of_several_blocks_a_group_is_left_to_transformers():
    fields = ENCODER_CONFIGS["albert"]
    assert family_of(fields) is Encoder
    assert family_of(fields | {"inner_group_num": 2}).__name__ == "TransformersEncoder"
    headed = {"architectures": ["AlbertForSequenceClassification"]}
    assert head_of(fields | headed, tiny_encoder("albert").config).form == "AlbertForSequenceClassification"
    assert head_of(fields | headed | {"inner_group_num": 2}, None) is None
