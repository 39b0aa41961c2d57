"""Tiny models of transformers with random weights, and scikit-learn's digits."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 images (N, 1, 8, 8), of mean about 0 and deviation about 1, and their labels (N,)."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None]
    return (images - 4.9) / 6.0, torch.tensor(found.target)


def vit(seed: int = 0, layers: int = 2, hidden: int = 64) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        initializer_range=0.1,
    )
    return ViTForImageClassification(config).eval()


def gpt2(seed: int = 0, vocabulary: int = 97) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def clip(seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 40, "max_position_embeddings": 8, "eos_token_id": 39, "bos_token_id": 38}
    vision = {**tower, "image_size": 8, "patch_size": 4, "num_channels": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
