"""Small GGUF files for tests, written with the gguf library by llama.cpp's rules of conversion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from microplane.exports.gguf_file import add_metadata

ARCHITECTURE = {"gemma3_text": "gemma3"}  # where GGUF's name is not the model type
PERMUTED = ("llama", "smollm3")
# where the float16 scales lie in a block of the K-quants: random bytes there would be infinities
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}

Tokens = dict[str, Any]  # metadata below "tokenizer."


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's rotary order: the halves of each head interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def converted(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face state dict under GGUF's names, changed as the conversion changes them."""
    name = ARCHITECTURE.get(config["model_type"], config["model_type"])
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    tensors = {}
    for theirs, tensor in state.items():
        if theirs == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        module, leaf = theirs.rsplit(".", 1)
        values = tensor.detach().float().numpy()
        role = module.rsplit(".", 1)[-1]
        if name in PERMUTED and role in ("q_proj", "k_proj"):
            values = permute(values, config["num_attention_heads" if role == "q_proj" else "num_key_value_heads"])
        if name.startswith("gemma") and role.endswith("norm"):
            values = values + 1
        tensors[f"{names.get_name(module)}.{leaf}"] = np.ascontiguousarray(values)
    return tensors


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kinds: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tokens: Tokens | None = None,
) -> Path:
    """`kinds` gives the tensors that are not stored as F32; a tensor of uint8 is taken as blocks that are ready."""
    name = ARCHITECTURE.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, name)
    for key, value in {**_metadata(name, config), **(metadata or {})}.items():
        add_metadata(writer, key, value)
    for key, value in (tokens or {}).items():
        add_metadata(writer, f"tokenizer.{key}", value)
    for tensor, values in tensors.items():
        kind = Kind[(kinds or {}).get(tensor, "F32")]
        if kind == Kind.F32:
            writer.add_tensor(tensor, values.astype(np.float32))
        elif kind == Kind.F16:
            writer.add_tensor(tensor, values.astype(np.float16))
        else:
            blocks = values if values.dtype == np.uint8 else gguf.quants.quantize(values, kind)
            writer.add_tensor(tensor, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    told = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": config.get("rope_theta", 10_000.0),
        "rope.dimension_count": head_dim,
    }
    if name.startswith("gemma"):
        told["attention.sliding_window"] = config["sliding_window"]
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            if config.get(cap):
                told[cap] = config[cap]
    return {f"{name}.{key}": value for key, value in told.items()}


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """(rows, bytes) of random K-quant blocks whose scales are finite and small."""
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = np.random.default_rng(seed).integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
    for at in SCALES[kind]:
        blocks[..., at : at + 2] = scale
    return blocks.reshape(rows, -1)
