"""A decoder as GGUF has it: llama.cpp's metadata, names and layout of tensors; the inverse of models/files/gguf.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microplane.errors import AdapterError
from microplane.models.configs.decoder import DecoderConfig
from microplane.models.contract import Model
from microplane.models.decoder import Decoder
from microplane.models.files.gguf import ROPE_FACTORS, SPECS, WHOLE, read_gguf
from microplane.nn.position import Rope

ARCHITECTURES = {spec.architecture: name for name, spec in SPECS.items()} | {"MistralForCausalLM": "llama"}
BIASES = {"llama": ("qkv_bias", "o_bias", "mlp_bias"), "qwen2": ("qkv_bias",)}  # that llama.cpp knows; none elsewhere
READ_OTHERWISE = ("architecture", "init_std", "windows", "context", "ropes")  # compared apart, or of no effect


def architecture(model: Model, what: str) -> str:
    """llama.cpp's name of the model's architecture.

    Raises:
        AdapterError: for what llama.cpp, or our own reader of its files, does not know.
    """
    if not isinstance(model, Decoder) or model.config.architecture not in ARCHITECTURES:
        raise AdapterError(f"{what} is a {model.config.architecture}, and GGUF is written here of {_families()}")
    if model.task_head is not None:
        raise AdapterError(f"{what} has a head for {model.task_head.config.task}, which GGUF has no place for: "
                           "microplane export --to hf writes it")  # fmt: skip
    name, config = ARCHITECTURES[model.config.architecture], model.config
    reasons = []
    for bias in ("qkv_bias", "o_bias", "mlp_bias"):
        if getattr(config, bias) and bias not in BIASES.get(name, ()):
            reasons.append(f"has {bias.replace('_bias', '')} biases")
    if config.activation != ("gelu_pytorch_tanh" if config.gemma else "silu"):
        reasons.append(f"has the activation {config.activation}")
    if name == "gemma2" and not config.tied:
        reasons.append("has a head of its own")
    if name == "smollm3" and any(config.windows):
        reasons.append("has an attention window")
    if reasons:
        raise AdapterError(f"llama.cpp has no {name} that {' and '.join(reasons)}, as {what} does: --to hf writes it")
    return name


def _families() -> str:
    return ", ".join(sorted(name.removesuffix("ForCausalLM") for name in ARCHITECTURES))


def metadata(config: DecoderConfig, name: str) -> tuple[dict[str, Any], list[str]]:
    """The keys below the architecture's name, and what users are to be told of them."""
    kinds = list(zip(config.ropes, config.windows, strict=True))
    far = [rope for rope, window in kinds if rope and not window]
    rope = (far or [rope for rope in config.ropes if rope])[0]
    window, notices = next((window for window in config.windows if window), None), []
    context = config.context
    if window and not config.gemma and window < context:
        context = window
        notices.append(f"llama.cpp's {name} has no attention window: the context is limited to the {window:,} tokens "
                       f"of the model's, and within them nothing differs")  # fmt: skip
    keys: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(rope.base),
    }
    if rope.kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}
    if config.gemma:
        keys["attention.sliding_window"] = window or context
        caps = {"attn_logit_softcapping": config.attn_logit_softcapping,
                "final_logit_softcapping": config.final_logit_softcapping}  # fmt: skip
        keys |= {key: float(cap) for key, cap in caps.items() if cap}
    if name == "gemma3":
        near = [rope for rope, window in kinds if rope and window]
        keys["rope.freq_base_swa"] = float((near or [rope])[0].base)
    return {f"{name}.{key}": value for key, value in keys.items()}, notices


def tensors(model: Decoder, name: str) -> Iterator[tuple[str, Tensor]]:
    """(GGUF's name, float32 tensor in llama.cpp's layout), one at a time."""
    for theirs, tensor in model.plain_tensors().items():
        yield gguf_name(theirs, name), laid_out(theirs, tensor.detach().float(), model.config, name)
    rope = next(rope for rope in model.config.ropes if rope is not None)
    if rope.kind == "llama3":
        yield ROPE_FACTORS, slowing(rope, model.config.head_dim)


def gguf_name(theirs: str, name: str) -> str:
    """The name in GGUF of a tensor that is called `theirs` in Hugging Face's model."""
    module, _, leaf = theirs.rpartition(".")
    whole = {one: other for other, one in WHOLE.items()}
    if module in whole:
        return f"{whole[module]}.{leaf}"
    block = {one: other for other, one in SPECS[name].block.items()}
    index, _, role = module.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{block[role]}.{leaf}"


def laid_out(theirs: str, tensor: Tensor, config: DecoderConfig, name: str) -> Tensor:
    """As llama.cpp wants it: q and k by rotary pairs (i, i + 1) in the Llama family, Gemma's norms with one added."""
    module, spec = theirs.rpartition(".")[0], SPECS[name]
    if spec.gemma and module.endswith("norm"):
        return tensor + 1.0
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(module.rpartition(".")[2])
    return permuted(tensor, heads) if spec.permuted and heads else tensor


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k (or its bias, or a LoRA's B) from pairs (i, i + Dh/2) to pairs (i, i + 1)."""
    return torch.unflatten(weight, 0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def slowing(rope: Rope, width: int) -> Tensor:
    """How much Llama 3's scaling slows each rotary pair: (Dh/2,)."""
    return Rope(rope.base).frequencies(width) / rope.frequencies(width)


def check_read_back(path: Path, config: DecoderConfig, name: str) -> None:
    """Whether the file means the same model, by our own reader, which fills in what llama.cpp takes for granted.

    Raises:
        AdapterError: naming every setting for which the format has no place.
    """
    back = DecoderConfig.from_hf(read_gguf(path).config)
    ours = replace(config, **{key: getattr(back, key) for key in READ_OTHERWISE})
    wrong = [
        f"{key} = {getattr(config, key)!r} would be {getattr(back, key)!r}"
        for key in DecoderConfig.__dataclass_fields__
        if getattr(ours, key) != getattr(back, key) and not _close(getattr(ours, key), getattr(back, key))
    ]
    if config.gemma and config.windows != back.windows and any(w and w < config.context for w in config.windows):
        wrong.append("its layers have windows in another order")
    for number, (mine, theirs) in enumerate(zip(config.ropes, back.ropes, strict=True)):
        if not _same_rope(mine, theirs, config.head_dim):
            wrong.append(f"layer {number} would turn with the position otherwise")
            break
    if wrong:
        raise AdapterError(f"llama.cpp's {name} cannot be this model: {'; '.join(wrong)}. --to hf writes it")


def _close(one: Any, other: Any) -> bool:
    return isinstance(one, float) and isinstance(other, float) and abs(one - other) <= 1e-6 * abs(one)


def _same_rope(one: Rope | None, other: Rope | None, width: int) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one.frequencies(width), other.frequencies(width), rtol=1e-4))
