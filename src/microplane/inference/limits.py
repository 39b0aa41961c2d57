"""What can be asked of generation, and how many tokens an answer may have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microplane.config.knobs import GenerateKnobs
from microplane.errors import ConfigError, DataError, notice


def check_limits(knobs: GenerateKnobs, prompts: Sequence[Sequence[int]], model: Any, given: bool = True) -> list[int]:
    """Refuse settings that cannot work or would be ignored, before the first step.

    Args:
        given: whether `max_new_tokens` are wanted in full; else one is enough.

    Returns:
        How many tokens each answer may have.
    """
    if knobs.beams > 1 and knobs.temperature > 0:
        both = f"beams = {knobs.beams} and temperature = {knobs.temperature}"
        raise ConfigError(f"{both} exclude each other: beam search draws nothing. Set beams to 1 or temperature to 0")
    idle_with = dict.fromkeys(("top_k", "top_p", "min_p", "seed"), "temperature") | {"length_penalty": "beams"}
    for name, other in idle_with.items():
        value, idle = getattr(knobs, name), GenerateKnobs.model_fields[other].default
        if getattr(knobs, other) == idle and value != GenerateKnobs.model_fields[name].default:
            beams = "beams to 1 and " if other == "temperature" and knobs.beams > 1 else ""
            way = f"Set {beams}{other} above {idle:g}"
            raise ConfigError(f"{name} = {value} changes nothing with {other} = {idle:g}. {way}")
    if "" in knobs.stop:
        raise ConfigError("stop = '' would end every answer before it begins. Give a text, as in '\\n'")
    return [_limit(knobs.max_new_tokens, number, prompt, model, given) for number, prompt in enumerate(prompts)]


def _limit(wanted: int, number: int, prompt: Sequence[int], model: Any, given: bool) -> int:
    """How many tokens an answer may have: in an encoder-decoder prompt and answer have the whole context each."""
    length, context, pairs = len(prompt), model.max_row_tokens, model.KIND == "encoder-decoder"
    if not prompt:
        raise DataError(f"prompt {number + 1} has no tokens, so there is nothing to continue. Give it some text")
    if pairs and context is not None and length > context:
        over = f"prompt {number + 1} has {length} tokens: more than the {context} that the model reads"
        raise ConfigError(f"{over}. Shorten the prompt")
    room = model.config.context or wanted if pairs else wanted if context is None else context - length
    if room >= (wanted if given else 1):
        return min(wanted, room)
    if pairs:
        over = f"max_new_tokens = {wanted} is more than the {room} tokens that the model writes"
        raise ConfigError(f"{over}. Set max_new_tokens to {room} or less")
    way = f"Set max_new_tokens to {room} or less" if room > 0 else "Shorten the prompt"
    asked = f", and max_new_tokens = {wanted}: together more than" if given else ": it leaves no room for an answer in"
    raise ConfigError(f"prompt {number + 1} has {length} tokens{asked} the model's context of {context}. {way}")


def tell_cut(wanted: int, limits: Sequence[int]) -> None:
    """Say that answers are to end before `max_new_tokens`, where the context does."""
    short = {number: limit for number, limit in enumerate(limits, 1) if limit < wanted}
    if short:
        number, least = min(short.items(), key=lambda item: item[1])
        of = f"{len(short):,} of {len(limits):,} prompts leave" if len(limits) > 1 else "the prompt leaves"
        most = f", prompt {number} the least: {least:,} tokens" if len(limits) > 1 else f": {least:,} tokens"
        notice(f"{of} less room for an answer than max_new_tokens = {wanted}{most}")
