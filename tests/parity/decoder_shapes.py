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
SHAPES: dict[str, tuple[type, dict[str, Any], list[dict[str, Any]]]] = {
    "gpt2": (transformers.GPT2Config, GPT2_SIZE, GPT2),
}
