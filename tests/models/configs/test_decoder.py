"""What is understood of a config.json, and what is said when it is wrong or not supported."""

from __future__ import annotations

import math

import pytest

from microplane.errors import ModelError
from microplane.models.configs.decoder import DecoderConfig
from microplane.models.configs.decoder_families import SPECS, DecoderSpec
from microplane.models.decoder import Decoder

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_head": 4, "n_layer": 2}
NEOX = {"architectures": ["GPTNeoXForCausalLM"]}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64}
STARCODER2 = {"architectures": ["Starcoder2ForCausalLM"]}
LONG = {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"architectures": ["BertModel", "Other"]}, "the architecture BertModel, Other is not supported"),
        ({"architectures": None, "model_type": "mamba"}, "the architecture mamba is not supported"),
        ({"architectures": None, "model_type": None}, "(config.json names none)"),
        ({"hidden_size": "16"}, "hidden_size = '16': expected a whole number above 0"),
        ({"vocab_size": None}, "vocab_size = None: expected a whole number above 0"),
        ({"hidden_size": 0, "rms_norm_eps": "x"}, "_size = 0: expected a whole number above 0\n  rms_norm_eps = 'x'"),
        ({"architectures": "Llama"}, "architectures = 'Llama' in config.json: expected a list of names"),
        ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn': expected an object"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes': expected true or false"),
        ({"layer_types": "full_attention"}, "layer_types = 'full_attention': expected a list"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "8"}}, "factor = '8': expected numbers above 0"),
        ({"rope_parameters": {"full_attention": "no"}}, "rope_parameters in config.json has full_attention = 'no'"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is not a multiple of num_key_value_heads = 3"),
        ({"hidden_act": "swish2"}, "the activation 'swish2' in config.json is not supported (hidden_act)"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rotary positions of type 'yarn'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rotary positions of type 'longrope'"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "supported are default, linear, llama3"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "needs low_freq_factor, high_freq_factor too"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}, "no_rope_layers in config.json has 1"),
        (
            {"architectures": ["Gemma3ForCausalLM"], "layer_types": ["linear_attention"] * 2},
            "expected 2 entries (num_hidden_layers), each full_attention or sliding_attention",
        ),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention = True in config.json is not"),
        (GPT2 | {"n_head": 3}, "n_embd = 16 is not a multiple of n_head = 3"),
        (GPT2 | {"n_layer": 0}, "n_layer = 0: expected a whole number above 0"),
        (GPT2 | {"activation_function": "tanh"}, "'tanh' in config.json is not supported (activation_function)"),
        (GPT2 | {"resid_pdrop": 1.0}, "resid_pdrop = 1.0: expected a number from 0 to below 1"),
        (NEOX | {"rotary_pct": 0.1}, "partial_rotary_factor = 0.1 of a head's 4 dimensions leaves no pair to turn"),
        (NEOX | {"rotary_pct": 1.5}, "partial_rotary_factor = 1.5"),
        (NEOX | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary positions of type 'dynamic'"),
        (PHI3 | {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 2}}, "longrope in config.json needs"),
        (PHI3 | {"rope_scaling": LONG | {"short_factor": [1.0]}}, "short_factor in config.json has 1 numbers for 2"),
        (STARCODER2 | {"use_bias": "yes"}, "use_bias = 'yes': expected true or false"),
        (STARCODER2 | {"norm_epsilon": 0}, "norm_epsilon = 0: expected a number above 0"),
        (STARCODER2 | {"residual_dropout": 1}, "residual_dropout = 1: expected a number from 0 to below 1"),
        ({"architectures": ["Gemma2ForCausalLM"], "use_bidirectional_attention": True}, "attention is causal here"),
        ({"is_causal": False}, "is_causal = false in config.json is not supported; attention is causal here"),
    ],
)  # fmt: skip
def test_configs_that_are_not_supported(fields, expected):
    with pytest.raises(ModelError) as caught:
        DecoderConfig.from_hf(CONFIG | fields)
    assert expected in str(caught.value)


def test_the_supported_architectures_are_named():
    with pytest.raises(ModelError, match="supported are llama, smollm3, mistral, qwen2"):
        DecoderConfig.from_hf(CONFIG | {"architectures": ["MambaForCausalLM"]})


@pytest.mark.parametrize("architecture", SPECS)
def test_config_survives_its_own_writing(architecture):
    config = DecoderConfig.from_hf(CONFIG | {"architectures": [architecture], "head_dim": 4})
    assert DecoderConfig.from_hf(config.to_hf()) == config


def test_longrope_reads_rows_within_the_context_of_pre_training():
    config = DecoderConfig.from_hf(CONFIG | PHI3 | {"rope_scaling": LONG, "max_position_embeddings": 256})
    assert (config.context, config.longest) == (64, 256)
    assert config.ropes[0].size == pytest.approx((1 + math.log(4) / math.log(64)) ** 0.5)
    written = config.to_hf()
    assert (written["max_position_embeddings"], written["original_max_position_embeddings"]) == (256, 64)
    assert DecoderConfig.from_hf(written) == config
    told = Decoder.from_hf(CONFIG | PHI3 | {"rope_scaling": LONG, "max_position_embeddings": 256})
    assert told.load_notice == "at most 64 tokens of a row are read: longrope turns longer rows otherwise"
    assert told.max_row_tokens == 64


def test_configs_of_transformers_4_and_5_mean_the_same():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = CONFIG | {"rope_theta": 5e5, "rope_scaling": scaling | {"rope_type": "llama3"}}
    new = CONFIG | {"rope_parameters": scaling | {"rope_type": "llama3", "rope_theta": 5e5}}
    assert DecoderConfig.from_hf(old) == DecoderConfig.from_hf(new)
    gemma = CONFIG | {"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7}
    old = gemma | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 6,
    }
    new = gemma | {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
        "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    }
    assert DecoderConfig.from_hf(old) == DecoderConfig.from_hf(new)


def test_a_family_that_spells_its_biases_apart_is_told_so_and_written_so(monkeypatch):
    """No family does yet: the fields are those of Llama, each under another name."""
    spelled = {"mlp_bias": "mlp_has_bias", "num_key_value_heads": "kv"}
    both = {"attention_bias": True, "mlp_bias": True}
    monkeypatch.setitem(SPECS, "LlamaForCausalLM", DecoderSpec("llama", both, fields=spelled, unread=()))
    for mlp in (True, False):
        config = DecoderConfig.from_hf(CONFIG | {"mlp_has_bias": mlp, "mlp_bias": not mlp, "kv": 2})
        assert (config.o_bias, config.mlp_bias) == (True, mlp)
        assert config.to_hf().items() >= {"attention_bias": True, "mlp_has_bias": mlp, "kv": 2}.items()
    with pytest.raises(ModelError, match="num_attention_heads = 4 is not a multiple of kv = 3"):
        DecoderConfig.from_hf(CONFIG | {"kv": 3})
    spec = DecoderSpec("llama", both, fields=spelled, only={"mlp_bias": True}, unread=())
    monkeypatch.setitem(SPECS, "LlamaForCausalLM", spec)
    with pytest.raises(ModelError, match="mlp_has_bias = False in config.json is not supported; only True is"):
        DecoderConfig.from_hf(CONFIG | {"mlp_has_bias": False})
    spec = DecoderSpec("llama", both, fields=spelled)  # whose class reads no mlp_bias, under no name
    monkeypatch.setitem(SPECS, "LlamaForCausalLM", spec)
    config = DecoderConfig.from_hf(CONFIG | {"mlp_bias": False})
    assert config.mlp_bias
    assert "mlp_has_bias" not in config.to_hf()
