"""Shapes of T5Gemma on which it is compared with transformers: odd sizes, and each switch on and off."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIDE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
NO_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
FULL, SLIDING = "full_attention", "sliding_attention"
# Changes of the encoder, of the decoder, and beside them. The first as the published ones have it, in all but size.
SHAPES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"sliding_window": 64}, {"sliding_window": 64}, {}),
    ({}, {}, {}),
    ({"hidden_size": 48, "intermediate_size": 31, "num_hidden_layers": 4}, {"num_hidden_layers": 2}, {}),  # as 9B to 2B
    ({}, {}, {"tie_word_embeddings": False}),
    (NO_CAPS, NO_CAPS, {}),
    ({"attn_logit_softcapping": 2.0}, {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}, {}),
    ({"sliding_window": 1}, {"sliding_window": 2}, {"tie_word_embeddings": False}),
    ({"layer_types": [FULL, FULL, SLIDING]}, {"layer_types": [SLIDING, SLIDING, SLIDING], "sliding_window": 3}, {}),
    ({"attention_bias": True}, {"attention_bias": True}, {}),
    ({"num_key_value_heads": 1, "head_dim": 6}, {"num_key_value_heads": 4, "head_dim": 10}, {}),
    ({"query_pre_attn_scalar": 5, "hidden_activation": "gelu"}, {"rms_norm_eps": 1e-3}, {}),
    ({"hidden_size": 20, "num_hidden_layers": 1}, {"hidden_size": 44, "intermediate_size": 7}, {}),
    (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
        {},
    ),
    ({"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 9}, {}, {"tie_word_embeddings": False}),
]


def build(number: int, decisive: bool = False, **more: Any) -> transformers.T5GemmaForConditionalGeneration:
    """A model of transformers with random weights, norms and biases too.

    `decisive` widens what the sub-layers add, or the word that was read last would always win.
    """
    encoder, decoder, around = SHAPES[number]
    torch.manual_seed(number)
    fields = {"encoder": SIDE | encoder, "decoder": SIDE | decoder, "vocab_size": 67} | around | more
    model = transformers.T5GemmaForConditionalGeneration(
        transformers.T5GemmaConfig(**fields, attn_implementation="eager")
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, parameter in model.named_parameters():
            if decisive and "post_" in name:
                parameter.add_(2.0)
        if not model.config.tie_word_embeddings:
            model.lm_head.out_proj.weight.normal_(std=0.5)  # which begins close to nothing
    return model.eval()
