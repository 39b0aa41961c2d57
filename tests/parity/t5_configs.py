"""The T5 family's configs as they are published, and models of transformers with random weights of those shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

SMALL = {
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "use_cache": True,
}
SMALL_11 = SMALL | {
    "d_ff": 1024,
    "feed_forward_proj": "gated-gelu",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}
T5 = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "t5-small": SMALL
    | T5
    | {"d_ff": 2048, "n_positions": 512, "num_heads": 8, "num_layers": 6, "output_past": True, "vocab_size": 32128},
    "t5-v1_1-small": SMALL_11 | T5 | {"output_past": True},
    "flan-t5-small": SMALL_11
    | T5
    | {"n_positions": 512, "output_past": True, "relative_attention_max_distance": 128, "torch_dtype": "float32"},
    "mt5-small": SMALL_11
    | {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"}
    | {"tokenizer_class": "T5Tokenizer", "vocab_size": 250112},
    "umt5-small": SMALL_11  # its file names no model_type
    | {"architectures": ["UMT5ForConditionalGeneration"], "dense_act_fn": "gelu_new", "is_gated_act": True}
    | {"relative_attention_max_distance": 128, "scalable_attention": True, "tokenizer_class": "T5Tokenizer"}
    | {"classifier_dropout": 0.0, "output_past": True, "vocab_size": 256384},
    "byt5-small": SMALL_11
    | T5
    | {"d_ff": 3584, "d_model": 1472, "gradient_checkpointing": False, "num_decoder_layers": 4, "num_layers": 12}
    | {"tokenizer_class": "ByT5Tokenizer", "vocab_size": 384},
}
# The same but for what only costs time: fewer layers and words, narrower.
TWIN = {"vocab_size": 101, "num_layers": 3, "num_decoder_layers": 2, "d_model": 48, "d_ff": 64, "d_kv": 16}
TWINS = {name: fields | TWIN for name, fields in PUBLISHED.items()}
CLASSES = {
    "T5ForConditionalGeneration": (transformers.T5Config, transformers.T5ForConditionalGeneration),
    "MT5ForConditionalGeneration": (transformers.MT5Config, transformers.MT5ForConditionalGeneration),
    "UMT5ForConditionalGeneration": (transformers.UMT5Config, transformers.UMT5ForConditionalGeneration),
}


def build(fields: dict[str, Any], decisive: float = 1.0) -> transformers.PreTrainedModel:
    """A model of transformers with random weights, norms too, and a head of its own where the published one has it.

    `decisive` widens the scores, so that no two words are likely to the last bits alike.
    """
    torch.manual_seed(0)
    config, kind = CLASSES[fields["architectures"][0]]
    model = kind(config.from_dict(fields | {"attn_implementation": "eager"})).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_(std=0.1)  # large enough to count
        if fields.get("tie_word_embeddings") is False:  # transformers 5 makes every random model a tied one
            model.lm_head.weight = torch.nn.Parameter(
                torch.randn(fields["vocab_size"], fields["d_model"]) * decisive * fields["d_model"] ** -0.5
            )
            if model.config.model_type == "umt5":
                model.config.tie_word_embeddings = False  # or it would scale its output, which umT5 never did
        elif decisive != 1:
            model.decoder.final_layer_norm.weight.mul_(decisive)
            for name, parameter in model.decoder.named_parameters():
                if name.endswith((".o.weight", ".wo.weight")):
                    parameter.mul_(2 * decisive)  # or the word that was read last would always win
    return model


def write(model: transformers.PreTrainedModel, fields: dict[str, Any], folder: Path) -> Path:
    """As it would be published: the fields as they are, and each tensor once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    skipped = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    if fields.get("tie_word_embeddings") is not False:
        skipped.add("lm_head.weight")
    tensors = {name: x.contiguous() for name, x in model.state_dict().items() if name not in skipped}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, S) and their mask."""
    longest = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    return ids, mask


def rows_of(lengths: tuple[int, ...], vocabulary: int, seed: int = 7) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[*torch.randint(2, vocabulary, (n - 1,), generator=generator).tolist(), 1] for n in lengths]
