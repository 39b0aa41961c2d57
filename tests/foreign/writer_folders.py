"""Folders of tiny decoders and encoder-decoders of many families, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.tiny import save_byte_tokenizer, save_tiny_folder

SIZE: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
WIDE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = WIDE | {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
STATES = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
DECODERS: dict[str, dict[str, Any]] = {
    "biogpt": WIDE,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": GPT | {"rotary_dim": 8},
    "cohere": GROUPED,
    "ctrl": GPT | {"dff": 48},
    "falcon": WIDE,
    "falcon_mamba": NARROW,
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4,
        "window_size": 4, "max_position_embeddings": 64,
    },
    "gptj": GPT | {"rotary_dim": 8},
    "ministral": GROUPED | {"head_dim": 8, "sliding_window": 6},
    "mixtral": GROUPED | {"num_local_experts": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "olmo": GROUPED,
    "openai-gpt": GPT,
    "opt": WIDE | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "phi": WIDE,
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64},
    "stablelm": GROUPED,
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64},
}  # fmt: skip
HYBRIDS: dict[str, dict[str, Any]] = {  # with states that are carried along, alone or beside attention
    "mamba": NARROW,
    "mamba2": NARROW | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "rwkv": DECODERS["rwkv"],
    "recurrent_gemma": GROUPED
    | {"num_hidden_layers": 3, "attention_window_size": 8, "lru_width": 32, "head_dim": 8},
    "falcon_h1": GROUPED | STATES | {"mamba_d_ssm": 64},
    "bamba": GROUPED | STATES | {"attn_layer_indices": [1]},
    "granitemoehybrid": GROUPED
    | STATES
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 48},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "qwen3_5_text": GROUPED
    | {
        "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    },
    "minimax": GROUPED
    | {
        "num_local_experts": 2, "block_size": 8, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8,
    },
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "init_std": 0.2, "forced_eos_token_id": None,
}  # fmt: skip
PAIRED: dict[str, dict[str, Any]] = dict.fromkeys(("plbart", "blenderbot", "blenderbot-small"), BART)
WRITERS = DECODERS | HYBRIDS | PAIRED


def save_writer(folder: Path, name: str, seed: int = 0) -> Path:
    """The model with the byte tokenizer, and the chat template of `save_tiny_folder` where it is a decoder."""
    if name in PAIRED:
        folder.mkdir(parents=True)
        tokens = save_byte_tokenizer(folder, ends=True)
    else:
        save_tiny_folder(folder)
        tokens = 259
        for file in ("config.json", "model.safetensors"):
            (folder / file).unlink()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, vocab_size=tokens, **SIZE, **WRITERS[name])
    (AutoModelForSeq2SeqLM if name in PAIRED else AutoModelForCausalLM).from_config(config).save_pretrained(folder)
    return folder
