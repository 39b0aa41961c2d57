"""Tiny decoders with tokenizers that llama.cpp can be, and adapters on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from microplane.checkpoints.adapter import save_adapter
from microplane.data.tokenizers.gguf import CUTS
from microplane.exports.gguf_model import ARCHITECTURES
from microplane.inference.pipeline import load
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.decoder import Decoder
from microplane.models.files.load import load_model, save_model
from tests.tiny import CHATML, CONFIGS, LLAMA

GEMMA3 = CONFIGS["gemma2"] | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WRITTEN = {name: fields for name, fields in CONFIGS.items() if fields["architectures"][0] in ARCHITECTURES}
FAMILIES: dict[str, dict[str, Any]] = WRITTEN | {  # of GGUF
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-heads": LLAMA | {"head_dim": 16},
    "llama-linear": LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": LLAMA | {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500_000.0, "head_dim": 32},
    "smollm3": LLAMA | {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "num_hidden_layers": 4},
    "mistral": LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "gemma3": GEMMA3,
}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
WORDS = ("the", "th", "in", "an", "er", "on", "he", "re", "12", "ing")


def byte_level(cut: str = "gpt-2", whole: bool = False) -> Tokenizer:
    """Byte-level BPE with a few merges, cut as llama.cpp's `cut` says."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("in", "g"), ("Ġ", "the"), ("1", "2"), ("o", "n"), ("Ġ", "Â")]
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *letters, *(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    elif cut == "gpt-2":
        backend.pre_tokenizer = plain
    else:
        from tokenizers import Regex

        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in CUTS[cut]]
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_only])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    backend.add_tokens(["<tool>"])
    return backend


def sentencepiece(prefix: bool = True) -> Tokenizer:
    """Llama 2's kind as a tokenizer.json has it: SentencePiece's BPE with bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz.,"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("i", "n"), ("▁", "a"), ("in", "g"), ("o", "n"), ("e", "r")]
    texts = [*pieces, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE({text: n for n, text in enumerate(texts)}, merges, unk_token="<unk>",
                                   fuse_unk=True, byte_fallback=True))  # fmt: skip
    steps = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def folder_of(
    path: Path, family: str = "llama-tied", backend: Tokenizer | None = None, template: str | None = CHATML,
    extra_rows: int = 3, **changes: Any,
) -> Path:  # fmt: skip
    """A tiny model with more rows than tokens, as real ones have."""
    path.mkdir(parents=True)
    backend = backend or byte_level()
    backend.save(str(path / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "unk_token": None, "pad_token": "<|endoftext|>"}
    if backend.token_to_id("</s>") is not None:
        names = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **names}
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    rows = backend.get_vocab_size() + extra_rows
    fields = FAMILIES[family] | {"vocab_size": rows, **changes}
    save_model(Decoder.from_hf(fields).init_weights(0), path)
    return path


def adapter_of(
    base: Path,
    folder: Path,
    method: str = "lora",
    about: dict[str, Any] | None = None,
    spread: float = 0.1,
    **knobs: Any,
) -> Path:
    """A saved adapter whose tensors have moved far enough to change answers."""
    made, model = make_method({"name": method, **knobs}), load_model(base)
    attach_method(made, model)
    for number, tensor in enumerate(trainable(model).values()):
        tensor.data += spread * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
    folder.mkdir(parents=True)
    if made.whole_model:
        load(base).tokenizer.save(folder)
    save_adapter(folder, model, made, {"base": str(base), **(about or {})})
    return folder
