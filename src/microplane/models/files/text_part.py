"""The language model inside the folder of a model that also sees: Gemma 3 of 4B and more."""

from __future__ import annotations

from typing import Any

from microplane.models.contract import Inside, Model
from microplane.models.files.checkpoint import Checkpoint, Places

PREFIXES = {  # names in a Gemma 3 that also sees images -> in one that does not; the rest is for images
    "language_model.": "",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
INSIDE = {"model.": "model.language_model."}  # names of the text's model -> as transformers calls them inside the whole


def text_part(config: dict[str, Any], places: Places) -> tuple[dict[str, Any], Places, tuple[str, ...]]:
    """The config.json and the tensors of the language model, and the names of the rest; any other model unchanged."""
    if config.get("architectures") != ["Gemma3ForConditionalGeneration"]:
        return config, places, ()
    text = config.get("text_config") or {}
    text = {**text, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    for name in ("bos_token_id", "eos_token_id"):
        if name in config:
            text.setdefault(name, config[name])
    renamed, around = {}, []
    for name, place in places.items():
        theirs = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if theirs is None:
            around.append(name)
        else:
            renamed[PREFIXES[theirs] + name.removeprefix(theirs)] = place
    return text, renamed, tuple(around)


def note_whole(model: Model, checkpoint: Checkpoint) -> None:
    """Have the model know of the whole that it was a part of."""
    if checkpoint.around:
        model.inside = Inside(INSIDE, tuple(name.removesuffix(".weight") for name in checkpoint.around))
