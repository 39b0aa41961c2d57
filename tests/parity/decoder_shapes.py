"""Shapes of decoder families on which they are compared with transformers: odd sizes, and each switch on and off."""

from __future__ import annotations

from typing import Any

import transformers

GPT2_SIZE: dict[str, Any] = {
    "vocab_size": 67,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.15,
}
GPT2: list[dict[str, Any]] = [  # the first as the model of 2019 has it, in all but its size
    {},
    {"n_inner": 31, "tie_word_embeddings": False},
    {"n_inner": 48, "scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "n_embd": 24},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_embd": 20},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    {"activation_function": "gelu", "n_embd": 40},
    {"activation_function": "relu", "n_layer": 1, "n_inner": 7},
    {"layer_norm_epsilon": 1e-3, "n_embd": 56},
    {"n_head": 1, "n_embd": 9, "n_inner": 11},
    {"n_head": 8, "n_embd": 48, "tie_word_embeddings": False, "activation_function": "silu"},
    {"n_positions": 20, "n_layer": 4, "layer_norm_epsilon": 1e-6},
]
NEOX_SIZE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}


def turning(share: float, base: float = 10_000.0, **more: Any) -> dict[str, Any]:
    settings = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share} | more
    return {"rope_parameters": settings}


NEOX: list[dict[str, Any]] = [  # the first as Pythia has it
    {},
    {"use_parallel_residual": False, "tie_word_embeddings": True},  # as StableLM's and RedPajama's first models
    turning(1.0) | {"use_parallel_residual": False},
    turning(0.5, 500.0) | {"hidden_act": "gelu_fast"},  # as the one of 20B
    {"attention_bias": False, "intermediate_size": 31},
    {"num_attention_heads": 4},
    {"num_attention_heads": 1, "hidden_size": 24, "intermediate_size": 7},
    {"layer_norm_eps": 1e-3, "hidden_act": "gelu_new"},
    {"hidden_act": "relu", "num_hidden_layers": 1},
    turning(0.25, rope_type="linear", factor=2.0),
    {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "attention_bias": False},
    {"vocab_size": 131, "tie_word_embeddings": True, "num_attention_heads": 4, "use_parallel_residual": True},
]
PHI3_SIZE = NEOX_SIZE | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 64,
}


def long(share: float, pairs: int, **more: Any) -> dict[str, Any]:
    """LongRoPE, within the context of pre-training."""
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(pairs)], "long_factor": [4.0 + i for i in range(pairs)]}
    return turning(share, rope_type="longrope", **factors, **more) | {"max_position_embeddings": 512}


PHI3: list[dict[str, Any]] = [  # the first as Phi-3 mini of 4k has it
    {"sliding_window": 16, "num_key_value_heads": 4},
    {},
    long(1.0, 4),  # as those of 128k
    long(0.75, 3) | {"tie_word_embeddings": True},  # as Phi-4 mini
    long(1.0, 4, attention_factor=1.25),
    {"num_key_value_heads": 1},
    {"sliding_window": 4, "tie_word_embeddings": True},
    turning(0.5),
    {"hidden_act": "gelu", "rms_norm_eps": 1e-3},
    {"num_key_value_heads": 4, "hidden_size": 40, "num_hidden_layers": 1},
    {"hidden_size": 48, "intermediate_size": 17, "num_attention_heads": 6, "num_key_value_heads": 3},
    turning(1.0, 500.0) | {"num_hidden_layers": 4, "sliding_window": 64},
]
STARCODER2_SIZE = NEOX_SIZE | {"num_attention_heads": 4, "num_key_value_heads": 2}
STARCODER2: list[dict[str, Any]] = [  # the first with a window, as the released ones
    {"sliding_window": 4} | turning(1.0, 999_999.4420358813),
    {"use_bias": False, "tie_word_embeddings": False},
    {},
    {"num_key_value_heads": 4, "sliding_window": 64},
    {"num_key_value_heads": 1, "hidden_size": 24, "intermediate_size": 7},
    {"head_dim": 12, "intermediate_size": 31},
    {"head_dim": 6, "use_bias": False, "sliding_window": 1},
    {"norm_epsilon": 1e-3, "hidden_act": "gelu"},
    {"hidden_act": "relu", "num_hidden_layers": 1, "tie_word_embeddings": False},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
    {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3},
    {"vocab_size": 131, "use_bias": False, "sliding_window": 7, "hidden_act": "gelu_new", "norm_epsilon": 1e-6},
]
SHAPES: dict[str, tuple[type, dict[str, Any], list[dict[str, Any]]]] = {
    "gpt2": (transformers.GPT2Config, GPT2_SIZE, GPT2),
    "gpt_neox": (transformers.GPTNeoXConfig, NEOX_SIZE, NEOX),
    "phi3": (transformers.Phi3Config, PHI3_SIZE, PHI3),
    "starcoder2": (transformers.Starcoder2Config, STARCODER2_SIZE, STARCODER2),
}
