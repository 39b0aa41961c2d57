"""All model families. A new one is its file and an entry in `MODELS`. Other architectures run through transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microplane.errors import ModelError
from microplane.models.configs.encoder_families import left_to_transformers
from microplane.models.configs.fields import architecture_of
from microplane.models.configs.transformer import REFUSED
from microplane.models.contract import Model
from microplane.models.decoder import Decoder
from microplane.models.encoder import Encoder
from microplane.models.external.encoder import TransformersEncoder
from microplane.models.external.library import find_transformers_class
from microplane.models.external.writers import TransformersWriter
from microplane.models.t5 import T5
from microplane.models.t5gemma import T5Gemma
from microplane.models.t5gemma2 import T5Gemma2
from microplane.models.transformer import Transformer

MODELS: tuple[type[Model], ...] = (Decoder, T5, T5Gemma, T5Gemma2, Transformer, Encoder)
ARCHITECTURES: dict[str, type[Model]] = {name: model for model in MODELS for name in model.ARCHITECTURES}
MODEL_TYPES: dict[str, str] = {name: kind for model in MODELS for name, kind in model.ARCHITECTURES.items()}


def family_of(fields: Mapping[str, Any]) -> type[Model]:
    """The model class for a config.json: one of ours, or else one that transformers runs.

    Raises:
        ModelError: if none, naming it and those that are supported; for sizes beyond any model's.
    """
    _check_sizes(fields)
    named = fields.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str) and named[0] in REFUSED:
        raise ModelError(f"a {named[0]} is not opened: {REFUSED[named[0]]}")
    error: ModelError | None = None
    try:
        own = ARCHITECTURES[architecture_of(fields, MODEL_TYPES)]
    except ModelError as unknown:
        error = unknown
        if not isinstance(fields.get("architectures") or [], list):
            raise
    if error is None and not left_to_transformers(fields):
        return own
    try:
        _, kind = find_transformers_class(fields)
    except ModelError as other:
        known = ", ".join(dict.fromkeys(MODEL_TYPES.values()))
        raise ModelError(f"{other} Supported without it are {known}") from error
    return TransformersEncoder if kind == "encoder" else TransformersWriter


MOST_LAYERS, WIDEST = 2_000, 100_000_000


def _check_sizes(fields: Mapping[str, Any]) -> None:
    """Raises: ModelError, for a size beyond any model's, whose modules alone would take hours to make."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _check_sizes(value)
        most = MOST_LAYERS if name.endswith(("layers", "n_layer", "num_blocks")) else WIDEST
        is_size = name.endswith(
            ("_layers", "_layer", "num_blocks", "_size", "_dim", "_heads", "_model", "_ff", "_embd")
        )
        if is_size and isinstance(value, int) and value > most:
            raise ModelError(f"config.json says {name} = {value:,}: no model has more than {most:,}. Mend that number")
