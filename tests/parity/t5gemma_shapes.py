"""Shapes of T5Gemma on which it is compared with transformers: odd sizes, and each switch on and off."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.runs.test_seq2seq import VISION

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


SIDE_2 = SIDE | {"sliding_window": 5, "sliding_window_pattern": 2}
WIDER = {"hidden_size": 48, "intermediate_size": 17}
NARROW = {"hidden_size": 9, "num_attention_heads": 3, "num_key_value_heads": 3}
LOCAL, FAR = {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
SHAPES_2: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"sliding_window": 64, "sliding_window_pattern": 6}, {"sliding_window": 64, "sliding_window_pattern": 6}, {}),
    ({}, {}, {}),
    ({"sliding_window": 4}, {"sliding_window": 4}, {}),  # as many tokens before as behind, or one less
    (WIDER | {"num_hidden_layers": 4}, WIDER | {"num_hidden_layers": 1}, {}),
    ({"sliding_window": 1}, {"sliding_window": 2}, {}),
    ({"layer_types": [FULL, FULL, SLIDING]}, {"layer_types": [SLIDING, SLIDING, SLIDING], "sliding_window": 3}, {}),
    ({"attention_bias": True}, {"attention_bias": True}, {}),
    ({"num_key_value_heads": 1, "head_dim": 6}, {"num_key_value_heads": 4, "head_dim": 10}, {}),
    ({"query_pre_attn_scalar": 5, "hidden_activation": "gelu"}, {"rms_norm_eps": 1e-3}, {}),
    ({}, {"final_logit_softcapping": 2.0}, {}),
    ({"rope_parameters": {FULL: FAR, SLIDING: LOCAL}}, {"rope_parameters": {FULL: FAR, SLIDING: LOCAL}}, {}),
    (NARROW | {"num_attention_heads": 1, "num_key_value_heads": 1}, NARROW, {}),
    ({"num_hidden_layers": 1}, {"num_hidden_layers": 2, "intermediate_size": 7}, {}),
]
END_OF_IMAGE = 11


def build_2(number: int, decisive: bool = False, **more: Any) -> transformers.T5Gemma2ForConditionalGeneration:
    """As `build`, of T5Gemma 2, with a tower for pictures."""
    encoder, decoder, around = SHAPES_2[number]
    torch.manual_seed(number)
    whole = {"text_config": SIDE_2 | encoder, "vision_config": VISION, "mm_tokens_per_image": 4}
    whole |= {"eoi_token_index": END_OF_IMAGE, "image_token_index": 12, "boi_token_index": 13}
    fields = {"encoder": whole, "decoder": SIDE_2 | decoder, "image_token_index": 12} | around | more
    config = transformers.T5Gemma2Config(**fields, attn_implementation="eager")
    return randomised(transformers.T5Gemma2ForConditionalGeneration(config), decisive)


def build(number: int, decisive: bool = False, **more: Any) -> transformers.T5GemmaForConditionalGeneration:
    """A model of transformers with random weights, norms and biases too.

    `decisive` widens what the sub-layers add, or the word that was read last would always win.
    """
    encoder, decoder, around = SHAPES[number]
    torch.manual_seed(number)
    fields = {"encoder": SIDE | encoder, "decoder": SIDE | decoder, "vocab_size": 67} | around | more
    config = transformers.T5GemmaConfig(**fields, attn_implementation="eager")
    return randomised(transformers.T5GemmaForConditionalGeneration(config), decisive)


def randomised(model: Any, decisive: bool) -> Any:
    """With random norms and biases, and a head of its own that is not close to nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if decisive and "post_" in name:
                parameter.add_(2.0)
        if not model.config.tie_word_embeddings:
            model.lm_head.out_proj.weight.normal_(std=0.5)
    return model.eval()
