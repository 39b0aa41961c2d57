"""All model families. Adding one: its file, and its place in `MODELS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microplane.models.config_fields import architecture_of
from microplane.models.contract import Model
from microplane.models.decoder import Decoder
from microplane.models.encoder import Encoder
from microplane.models.t5 import T5
from microplane.models.transformer import Transformer

MODELS: tuple[type[Model], ...] = (Decoder, T5, Transformer, Encoder)
ARCHITECTURES: dict[str, type[Model]] = {name: model for model in MODELS for name in model.ARCHITECTURES}
MODEL_TYPES: dict[str, str] = {name: kind for model in MODELS for name, kind in model.ARCHITECTURES.items()}


def family_of(fields: Mapping[str, Any]) -> type[Model]:
    """Which of our models a config.json describes.

    Raises:
        ModelError: if none, naming it and those that are supported.
    """
    return ARCHITECTURES[architecture_of(fields, MODEL_TYPES)]
