"""Folders of tiny models that Microplane has no code for, as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from tests.tiny import save_byte_tokenizer, save_tiny_folder

GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BYTES = 259  # tokens of the tokenizer of save_tiny_folder


def causal(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    size = {"vocab_size": BYTES, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "openai-gpt":  # whose linear layers are stored as (in, out)
        return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**size, **GPT)).eval()
    if name == "opt":
        config = transformers.OPTConfig(
            **size, **wide, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.2, pad_token_id=0
        )
        return transformers.OPTForCausalLM(config).eval()
    if name == "gptj":
        return transformers.GPTJForCausalLM(transformers.GPTJConfig(**size, **GPT, rotary_dim=8)).eval()
    if name == "cohere":  # whose logits are scaled behind the head
        config = transformers.CohereConfig(
            **size, **wide, intermediate_size=48, max_position_embeddings=64, num_key_value_heads=2, logit_scale=0.3,
            pad_token_id=0,
        )  # fmt: skip
        return transformers.CohereForCausalLM(config).eval()
    assert name == "bloom", name
    config = transformers.BloomConfig(**size, hidden_size=32, n_layer=2, n_head=4)
    return transformers.BloomForCausalLM(config).eval()


CAUSAL = ("openai-gpt", "opt", "gptj", "bloom", "cohere")


def save_causal(folder: Path, name: str = "openai-gpt") -> Path:
    """The model with the byte tokenizer and chat template of `save_tiny_folder`."""
    save_tiny_folder(folder)
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    causal(name).save_pretrained(folder)
    return folder


def save_plbart(folder: Path) -> Path:
    folder.mkdir(parents=True)
    tokens = save_byte_tokenizer(folder, ends=True)
    torch.manual_seed(0)
    config = transformers.PLBartConfig(
        vocab_size=tokens, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, init_std=0.2,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    transformers.PLBartForConditionalGeneration(config).eval().save_pretrained(folder)
    return folder
