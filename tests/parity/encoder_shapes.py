"""Twelve shapes of each encoder family with code of ours, each with the switches that its configuration has."""

from __future__ import annotations

from typing import Any

import transformers

from tests.parity.test_encoder import Case

# Sizes: width, heads, inner width, blocks, vocabulary, places.
SIZES = [
    (32, 4, 48, 2, 67, 48),
    (20, 5, 33, 1, 53, 40),
    (24, 1, 17, 3, 97, 41),
    (36, 3, 36, 2, 61, 64),
    (16, 8, 64, 2, 59, 43),
    (40, 2, 7, 1, 71, 48),
    (12, 6, 25, 4, 101, 40),
    (28, 7, 29, 2, 55, 52),
    (48, 4, 31, 1, 89, 45),
    (18, 3, 72, 3, 64, 40),
    (64, 2, 40, 1, 77, 48),
    (30, 5, 11, 2, 83, 47),
]
NAMES = (
    *("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers"),
    *("vocab_size", "max_position_embeddings"),
)
DISTILBERT = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "hidden_act": "activation",
}
WIDE = {"initializer_range": 0.15, "pad_token_id": 0}
V3 = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
MEAN = {"classifier_pooling": "mean"}
ROPE = {"rope_parameters": {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0}}
GELUS = ("gelu", "gelu_new", "relu", "silu")


def _cases(name: str, config: type, spelled: dict[str, str], *switches: dict[str, Any]) -> list[Case]:
    """The sizes, with the switches taken in turn."""
    found = []
    for number, sizes in enumerate(SIZES):
        fields = WIDE | dict(zip(NAMES, sizes, strict=True)) | switches[number % len(switches)]
        fields["hidden_act"] = fields.get("hidden_act", GELUS[number % len(GELUS)])
        found.append(Case(f"{name}-{number}", config, {spelled.get(key, key): x for key, x in fields.items()}))
    return found


SHAPES: dict[str, list[Case]] = {
    "distilbert": _cases(
        "distilbert", transformers.DistilBertConfig, DISTILBERT, {}, {"sinusoidal_pos_embds": True}, {"pad_token_id": 3}
    ),
    "electra": _cases(
        *("electra", transformers.ElectraConfig, {}),
        {"embedding_size": 16},
        {"embedding_size": 128, "type_vocab_size": 1},
        {"embedding_size": 9, "layer_norm_eps": 1e-5, "type_vocab_size": 4},
        {"embedding_size": 16, "pad_token_id": 5},
        {"embedding_size": 16, "hidden_size": 16, "num_attention_heads": 4},
    ),
    "albert": _cases(
        *("albert", transformers.AlbertConfig, {}),
        {"embedding_size": 16, "num_hidden_layers": 4},
        {"embedding_size": 128, "type_vocab_size": 1, "num_hidden_layers": 3, "num_hidden_groups": 3},
        {"embedding_size": 9, "num_hidden_layers": 5, "num_hidden_groups": 2, "layer_norm_eps": 1e-5},
        {"embedding_size": 16, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1},
        {"embedding_size": 16, "pad_token_id": 5, "num_hidden_layers": 7, "num_hidden_groups": 3},
    ),
    "mpnet": _cases(
        "mpnet", transformers.MPNetConfig, {}, {"pad_token_id": 1}, {"pad_token_id": 1, "layer_norm_eps": 1e-5}
    ),
    "deberta": _cases(
        *("deberta", transformers.DebertaV2Config, {}),
        V3 | {"position_buckets": 8},  # DeBERTa-v3
        V3 | {"position_buckets": 8, "conv_kernel_size": 3, "conv_act": "gelu"},  # DeBERTa-v2-xlarge
        V3 | {"share_att_key": False, "position_buckets": 4},
        V3 | {"position_buckets": -1, "max_relative_positions": -1, "type_vocab_size": 2},
        V3 | {"pos_att_type": "c2p", "max_relative_positions": 20, "norm_rel_ebd": "none", "pad_token_id": 4},
        V3 | {"pos_att_type": ["p2c"], "position_biased_input": True, "share_att_key": False},
        V3 | {"pos_att_type": "p2c", "max_relative_positions": 9, "pooler_hidden_act": "tanh"},
        V3 | {"position_buckets": 16, "conv_kernel_size": 5, "conv_groups": 2},
        {"layer_norm_eps": 1e-7},
        V3 | {"position_buckets": 6, "max_relative_positions": 12, "share_att_key": False, "type_vocab_size": 3},
        V3 | {"position_buckets": 32, "hidden_act": "gelu"},
        V3 | {"pos_att_type": ["c2p"], "share_att_key": False, "position_buckets": 10, "layer_norm_eps": 1e-7},
    ),
    "nomic": _cases(
        *("nomic", transformers.NomicBertConfig, {}),
        {"hidden_act": "silu"},
        {"type_vocab_size": 1, "hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "layer_norm_eps": 1e-5},
        ROPE | {"pad_token_id": 4},
        {"type_vocab_size": 3, "hidden_act": "silu", "layer_norm_eps": 1e-3},
    ),
    "eurobert": _cases(
        *("eurobert", transformers.EuroBertConfig, {}),
        MEAN | {"hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 250_000.0}},
        MEAN | {"num_key_value_heads": 1, "attention_bias": True},
        {"classifier_pooling": "bos", "hidden_act": "silu", "mlp_bias": True},
        MEAN | {"head_dim": 6, "hidden_act": "silu"},
        MEAN | ROPE | {"num_key_value_heads": 1},
        {"classifier_pooling": "bos", "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3},
        MEAN | {"num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 3},
    ),
}
ALL = [case for cases in SHAPES.values() for case in cases]
ONE_EACH = [cases[0] for cases in SHAPES.values()]
