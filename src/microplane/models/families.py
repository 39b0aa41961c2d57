"""All model families. A new one is its file and an entry in `MODELS`. Other architectures run through transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microplane.errors import ModelError
from microplane.models.configs.fields import architecture_of
from microplane.models.contract import Model
from microplane.models.decoder import Decoder
from microplane.models.encoder import Encoder
from microplane.models.external.transformers import TransformersModel, find_transformers_class
from microplane.models.t5 import T5
from microplane.models.transformer import Transformer

MODELS: tuple[type[Model], ...] = (Decoder, T5, Transformer, Encoder)
ARCHITECTURES: dict[str, type[Model]] = {name: model for model in MODELS for name in model.ARCHITECTURES}
MODEL_TYPES: dict[str, str] = {name: kind for model in MODELS for name, kind in model.ARCHITECTURES.items()}


def family_of(fields: Mapping[str, Any]) -> type[Model]:
    """The model class for a config.json: one of ours, or else `TransformersModel`.

    Raises:
        ModelError: if none, naming it and those that are supported.
    """
    try:
        return ARCHITECTURES[architecture_of(fields, MODEL_TYPES)]
    except ModelError as error:
        if not isinstance(fields.get("architectures") or [], list):
            raise
        try:
            find_transformers_class(fields)
        except ModelError as other:
            raise ModelError(f"{other} Supported without it are {', '.join(MODEL_TYPES)}") from error
        return TransformersModel
