"""What a model's files say of how it writes, and no knob changes."""

from __future__ import annotations

from typing import NamedTuple


class GenerationRules(NamedTuple):
    """Rules of generation that the model brings along (generation_config.json) and no knob changes."""

    bad_tokens: tuple[int, ...] = ()  # tokens that are never written
    forced_eos: int | None = None  # the last token of a text that is cut at max_new_tokens
    forced_bos: int | None = None  # the first token that is written
    renormalize: bool = False  # beam search sums log p over the allowed tokens only
