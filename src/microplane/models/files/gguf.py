"""GGUF files as checkpoints: their metadata as the fields of a config.json, their tensors under Hugging Face's names.

What llama.cpp's conversion did to the weights is undone: the rows of q and k of Llama-type models lie in the order of
its own rotary layout, and the norms of Gemma have one added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microplane.errors import ModelError
from microplane.models.files.checkpoint import Checkpoint
from microplane.models.files.gguf_format import GgufFile, read_header
from microplane.nn.gguf_linear import BYTES, Blocks, unpack

WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
GEMMA_BLOCK = BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_FACTORS = "rope_freqs.weight"  # how much Llama 3's scaling slows each rotary pair
REQUIRED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
WHOLE_NUMBERS = (
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.sliding_window",
    "context_length", "rope.dimension_count", "rope.scaling.original_context_length",
)  # fmt: skip
NUMBERS = (
    "attention.layer_norm_rms_epsilon", "attn_logit_softcapping", "final_logit_softcapping",
    "rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor", "rope.scale_linear",
)  # fmt: skip
LAYERS_OF_GEMMA_27B = {"gemma2": 46, "gemma3": 62}  # the files do not say how its scores are scaled


@dataclass(frozen=True)
class GgufSpec:
    """What a value of `general.architecture` stands for."""

    model_type: str
    architecture: str
    block: Mapping[str, str]  # modules of a block: GGUF's name -> Hugging Face's
    permuted: bool = False  # the rows of q and k are in llama.cpp's rotary order
    gemma: bool = False  # norms are stored with one added


SPECS = {
    "llama": GgufSpec("llama", "LlamaForCausalLM", BLOCK, permuted=True),  # also SmolLM2 and Mistral
    "smollm3": GgufSpec("smollm3", "SmolLM3ForCausalLM", BLOCK, permuted=True),
    "qwen2": GgufSpec("qwen2", "Qwen2ForCausalLM", BLOCK),
    "qwen3": GgufSpec("qwen3", "Qwen3ForCausalLM", BLOCK),
    "gemma2": GgufSpec("gemma2", "Gemma2ForCausalLM", GEMMA_BLOCK, gemma=True),
    "gemma3": GgufSpec("gemma3_text", "Gemma3ForCausalLM", GEMMA_BLOCK, gemma=True),
}


def read_gguf(path: Path) -> Checkpoint:
    """Open a .gguf file. Tensors are unpacked to float32 one at a time, when they are asked for.

    Raises:
        ModelError: if it cannot be read, or is of an architecture, or has settings or tensors, that are not supported.
    """
    file = read_header(path)
    name = file.metadata.get("general.architecture")
    if name not in SPECS:
        raise ModelError(
            f"{path} is of the architecture {name!r}, which is not supported as GGUF; supported are {', '.join(SPECS)}"
        )
    spec = SPECS[name]
    names = _names(file, spec)
    config = _config(file, name, spec)
    return Checkpoint(config, Tensors(file, spec, names, config), path, _mostly(file))


def _mostly(file: GgufFile) -> str:
    """The format in which most numbers are stored. Counting tensors would find F32, the format of the many norms."""
    sizes: Counter[str] = Counter()
    for entry in file.tensors.values():
        sizes[entry.kind] += math.prod(entry.shape)
    return sizes.most_common(1)[0][0]


def _names(file: GgufFile, spec: GgufSpec) -> dict[str, str]:
    """Hugging Face's name of each tensor -> the name in the file."""
    names, unknown = {}, []
    for name in file.tensors:
        stem, _, leaf = name.rpartition(".")
        if stem in WHOLE:
            names[f"{WHOLE[stem]}.{leaf}"] = name
            continue
        _, _, inner = stem.partition(".")
        index, _, role = inner.partition(".")
        if stem.startswith("blk.") and index.isdigit() and role in spec.block:
            names[f"model.layers.{index}.{spec.block[role]}.{leaf}"] = name
        elif name != ROPE_FACTORS:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ModelError(
            f"{file.path} has tensors that a {spec.architecture} does not: {', '.join(unknown[:5])}{more}."
            " Mixtures of experts and fused projections are not supported"
        )
    if "model.embed_tokens.weight" not in names:
        raise ModelError(f"{file.path} has no tensor token_embd.weight: it is a vocabulary or an adapter, not a model")
    return names


class Tensors(Mapping[str, Tensor]):
    """The tensors as float32, with Hugging Face's names and layout, each unpacked when it is asked for."""

    def __init__(self, file: GgufFile, spec: GgufSpec, names: Mapping[str, str], config: Mapping[str, Any]):
        self.file, self.spec, self.names = file, spec, names
        q, k = config["num_attention_heads"], config["num_key_value_heads"]
        self.permuted = {"self_attn.q_proj": q, "self_attn.k_proj": k} if spec.permuted else {}

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.from_numpy(self.file.read(self.names[name]))
        module = ".".join(name.split(".")[-3:-1])
        heads = self.permuted.get(module)
        if heads and tensor.shape[0] % (2 * heads) == 0:  # else the shape is wrong, which loading says
            return unpermuted(tensor, heads)
        if self.spec.gemma and module.endswith("norm"):
            return tensor - 1.0
        return tensor

    def parts(self, name: str) -> Blocks | None:
        """The weight as a GGUFLinear holds it, if the file stores it in one of its kinds."""
        entry, heads = self.file.tensors[self.names[name]], self.permuted.get(".".join(name.split(".")[-3:-1]))
        if entry.kind not in BYTES or len(entry.shape) != 2:
            return None
        raw = torch.from_numpy(self.file.raw(self.names[name])).view(entry.shape[0], -1)
        return unpack(unpermuted(raw, heads) if heads and len(raw) % (2 * heads) == 0 else raw, entry.kind)

    def __contains__(self, name: object) -> bool:
        return name in self.names  # Mapping's own would unpack the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def unpermuted(weight: Tensor, heads: int) -> Tensor:
    """The rows of q or k (or its bias) from llama.cpp's order, rotary pairs (i, i + 1), back to pairs (i, i + Dh/2)."""
    return torch.unflatten(weight, 0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _config(file: GgufFile, name: str, spec: GgufSpec) -> dict[str, Any]:
    values = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    _check(file, name, values)
    heads, width = values["attention.head_count"], values["embedding_length"]
    config = {
        "architectures": [spec.architecture],
        "model_type": spec.model_type,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": values["feed_forward_length"],
        "num_hidden_layers": values["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("attention.head_count_kv", heads),
        "head_dim": _head_dim(file, values),
        "max_position_embeddings": values.get("context_length", 2048),
        "rms_norm_eps": values.get("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": values.get("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(file, values),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
    }
    for which, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        if (token := file.metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[f"{which}_token_id"] = token
    return config | _particulars(name, config, values)


def _check(file: GgufFile, name: str, values: Mapping[str, Any]) -> None:
    for key in (*REQUIRED, *WHOLE_NUMBERS, *NUMBERS):
        value = values.get(key)
        if value is None and key not in REQUIRED:
            continue
        whole = key not in NUMBERS
        if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool) or not value > 0:
            shown = "nothing" if value is None else repr(value)[:40]
            expected = "a whole number above 0" if whole else "a number above 0"
            raise ModelError(f"the metadata of {file.path} have {shown} for {name}.{key}: expected {expected}")
    found = {stem.split(".")[1] for stem in file.tensors if stem.startswith("blk.")}
    if values["block_count"] != len(found):
        raise ModelError(
            f"the metadata of {file.path} promise {values['block_count']} layers, and it holds {len(found)}"
        )
    if values.get("expert_count"):
        raise ModelError(f"{file.path} is a mixture of {values['expert_count']} experts, which is not supported")


def _head_dim(file: GgufFile, values: Mapping[str, Any]) -> int:
    turned = values.get("rope.dimension_count")
    width: int = (
        values.get("attention.key_length") or turned or values["embedding_length"] // values["attention.head_count"]
    )
    if values.get("attention.value_length", width) != width or (turned or width) != width:
        raise ModelError(
            f"{file.path} has heads of {width} for keys, {values.get('attention.value_length', width)} for values and"
            f" {turned or width} that turn with the position; only equal widths are supported"
        )
    return width


def _particulars(name: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of this architecture alone, with those that the file does not hold because llama.cpp knows them."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if name == "smollm3":
        return {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(layers)], "use_sliding_window": False}
    if name in ("qwen2", "qwen3"):
        return {"use_sliding_window": False}
    if name == "llama":
        return {}
    wide = layers == LAYERS_OF_GEMMA_27B[name]
    period = 2 if name == "gemma2" else 6
    fields = {
        "query_pre_attn_scalar": config["hidden_size"] // heads if wide else config["head_dim"],
        "sliding_window": values.get("attention.sliding_window", 4096),
        "layer_types": ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)],
        "attn_logit_softcapping": values.get("attn_logit_softcapping"),
        "final_logit_softcapping": values.get("final_logit_softcapping"),
        "hidden_activation": "gelu_pytorch_tanh",
    }
    if name == "gemma2":
        capped = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
        return fields | {key: fields[key] or usual for key, usual in capped.items()}
    theta = values.get("rope.freq_base", 1_000_000.0)
    return fields | {"rope_theta": theta, "rope_local_base_freq": values.get("rope.freq_base_swa", 10_000.0)}


def _rope_scaling(file: GgufFile, values: Mapping[str, Any]) -> dict[str, Any] | None:
    if ROPE_FACTORS in file.tensors:
        factors = file.read(ROPE_FACTORS).astype(np.float64)
        return _llama3_scaling(file, factors, values.get("rope.freq_base", 10_000.0))
    kind = values.get("rope.scaling.type", "linear" if "rope.scale_linear" in values else "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": values.get("rope.scaling.factor", values.get("rope.scale_linear", 1.0))}
    if original := values.get("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3_scaling(file: GgufFile, factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """The settings that the factors were computed from.

    Between the two bounds, the share of a pair that is kept is linear in its turns per token:
    kept = (original * turns - low) / (high - low), and factor = 1 / (kept + (1 - kept) / slowest). Only ratios of the
    three settings show in the factors, so low_freq_factor is 1, as in all published models.
    """
    slowest = float(factors.max())
    if slowest == 1.0:
        return None
    turns = theta ** -(np.arange(len(factors)) / len(factors)) / (2 * math.pi)
    kept = (1 / factors - 1 / slowest) / (1 - 1 / slowest)
    between = (kept > 1e-4) & (kept < 1 - 1e-4)
    if between.sum() >= 2:
        slope, start = np.polyfit(turns[between], kept[between], 1)
        high, original = 1 - 1 / start, -slope / start
    else:  # the few pairs of a very small head: the ratio of the published models, and an original that fits
        high = 4.0
        fast, slow = turns[kept >= 1 - 1e-4], turns[kept <= 1e-4]
        bounds = [high / fast.min()] * bool(fast.size) + [1 / slow.max()] * bool(slow.size)
        original = (
            (kept[between] * (high - 1) + 1) / turns[between]
            if between.any()
            else math.prod(bounds) ** (1 / len(bounds))
        )
    high, original = round(float(high), 3), round(float(np.mean(original)))
    expected = np.clip((original * turns - 1) / (high - 1), 0, 1)
    if not np.allclose(1 / (expected + (1 - expected) / slowest), factors, rtol=1e-3):
        raise ModelError(
            f"the rotary factors ({ROPE_FACTORS}) of {file.path} are not Llama 3's scaling; no other is supported"
        )
    return {
        "rope_type": "llama3",
        "factor": slowest,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
