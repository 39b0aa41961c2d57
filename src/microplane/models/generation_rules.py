"""What a model's files say of how it writes, and no knob changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from microplane.models.configs.transformer import SPECS

MEANS_NOTHING: dict[str, Any] = {  # transformers' settings -> the value of each by which it writes as it is done here
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "exponential_decay_length_penalty": None,
}
TOLD = (  # fields of a config.json that tell how a model writes, in folders without a generation_config.json
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "renormalize_logits", "max_length"),
    *("early_stopping", "length_penalty", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *MEANS_NOTHING,
)
KEPT = ("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id")  # here too, by the families of `SPECS`


class GenerationRules(NamedTuple):
    """Rules of generation that the model brings along (generation_config.json) and no knob changes."""

    bad_tokens: tuple[int, ...] = ()  # tokens that are never written
    forced_eos: int | None = None  # the last token of a text that is cut at max_new_tokens
    forced_bos: int | None = None  # the first token that is written
    renormalize: bool = False  # beam search sums log p over the allowed tokens only


def settings_of(generation: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the files of a model say of how it writes: generation_config.json, or without one config.json."""
    config = config or {}
    return dict(generation or {name: config[name] for name in TOLD if config.get(name) is not None})


def left_out(generation: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What these files have transformers do as it writes, and is not done here: by field, as they say it."""
    told, architectures = settings_of(generation, config), (config or {}).get("architectures")
    kept = KEPT if isinstance(architectures, list) and any(name in SPECS for name in architectures) else ()
    fields = ((name, told.get(name), nothing) for name, nothing in MEANS_NOTHING.items() if name not in kept)
    return {name: value for name, value, nothing in fields if value not in (None, nothing)}
