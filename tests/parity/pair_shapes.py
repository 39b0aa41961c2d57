"""Shapes of encoder-decoders of BART's kind on which they are compared with transformers: odd sizes, each switch."""

from __future__ import annotations

from typing import Any

import transformers

SIZE: dict[str, Any] = {
    "vocab_size": 67,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "init_std": 0.15,  # large enough for attention to have something to choose from
}
SHAPES: list[dict[str, Any]] = [  # the first as the family has it, in all but its size
    {},
    {"scale_embedding": True, "activation_function": "relu"},
    {"scale_embedding": False, "activation_function": "gelu"},
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": False, "activation_function": "swish", "vocab_size": 131},
    {"d_model": 24, "encoder_attention_heads": 3, "decoder_attention_heads": 1, "encoder_ffn_dim": 31},
    {"d_model": 36, "encoder_attention_heads": 6, "decoder_ffn_dim": 7, "activation_function": "gelu_new"},
    {"encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 20},
    {"encoder_layers": 4, "decoder_layers": 1},  # as distilled models are cut
    {"encoder_layers": 1, "decoder_layers": 4, "scale_embedding": True, "activation_function": "gelu"},
    {"pad_token_id": 5, "decoder_start_token_id": 7, "eos_token_id": 9},
    {"d_model": 40, "decoder_attention_heads": 10, "encoder_ffn_dim": 64, "scale_embedding": True, "init_std": 0.05},
]
CLASSES: dict[str, tuple[Any, Any]] = {
    "bart": (transformers.BartConfig, transformers.BartForConditionalGeneration),
    "m2m_100": (transformers.M2M100Config, transformers.M2M100ForConditionalGeneration),
    "mbart": (transformers.MBartConfig, transformers.MBartForConditionalGeneration),
    "pegasus": (transformers.PegasusConfig, transformers.PegasusForConditionalGeneration),
}
