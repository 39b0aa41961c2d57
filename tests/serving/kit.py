"""Tiny bases and adapters with random weights, saved as a run saves them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from microplane.checkpoints.adapter import save_adapter
from microplane.checkpoints.attach_saved import weights_fingerprint
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.families import family_of
from microplane.models.files.load import load_model, save_model
from microplane.models.heads import add_head, head_metadata
from microplane.nn.number_format import NumberFormat
from tests.tiny import BERT, PAIR_CONFIGS, save_byte_tokenizer, save_tiny_folder

PROMPTS = ["turn on the light", "a", "lock the front door, please", "what is it?", "play music", "stop", "why", "go on"]
FLOAT32 = NumberFormat(torch.float32)


def decoder_folder(folder: Path) -> Path:
    return save_tiny_folder(folder, num_key_value_heads=4, max_position_embeddings=512)


def pair_folder(folder: Path, family: str = "t5") -> Path:
    return _folder(folder, PAIR_CONFIGS[family] | {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0})


def encoder_folder(folder: Path) -> Path:
    return _folder(folder, BERT)


def _folder(folder: Path, fields: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    fields = fields | {"vocab_size": save_byte_tokenizer(folder, ends=True)}
    save_model(family_of(fields).from_hf(fields).init_weights(0), folder)
    return folder


def adapter(
    base: Path, folder: Path, method: str = "lora", seed: int = 1, head: list[str] | None = None, **knobs: Any
) -> Path:
    """An adapter whose every trained number is drawn anew, so that it changes all that it can."""
    model = load_model(base, FLOAT32)
    if head:
        add_head(model, "classification", head, seed=seed)
    made = make_method({"name": method, **knobs})
    attach_method(made, model)
    generator = torch.Generator().manual_seed(seed)
    for tensor in trainable(model).values():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data.add_(0.3 * noise.to(tensor.dtype))
    about = {"base": str(base), "base_weights": weights_fingerprint(base), "base_dtype": "float32", "template": "auto"}
    about |= head_metadata(model)
    folder.mkdir(parents=True)
    save_adapter(folder, model, made, about)
    for name in ("tokenizer.json", "tokenizer_config.json") if made.whole_model else ():
        shutil.copy(base / name, folder)
    return folder
