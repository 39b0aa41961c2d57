"""A tokenizer and a model that do not belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import ModelError


def check_ids(model: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """Refuse a tokenizer that was given tokens for which the model has no embedding.

    Raises:
        ModelError: naming a token and the sizes.
    """
    size = model.config.vocab_size
    if ids and max(ids) >= size:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and makes {tokenizer.piece(max(ids))!r} number "
            f"{max(ids):,}, but the model has embeddings for {size:,} only. They do not belong together: fetch the "
            "model again, or resize its embedding"
        )
