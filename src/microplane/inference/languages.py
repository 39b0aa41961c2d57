"""The languages that a translation model reads and writes: its tokenizer's, and the token that it writes first."""

from __future__ import annotations

from dataclasses import replace

from microplane.data.tokenizers.language_codes import KNOBS
from microplane.data.tokenizers.languages import with_languages
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import ConfigError
from microplane.models.contract import Model
from microplane.models.generation_rules import settings_of
from microplane.models.transformer import Transformer


def in_languages(tokenizer: Tokenizer, model: Model, source: str | None = None, target: str | None = None) -> Tokenizer:
    """The tokenizer for a model's languages; what is None is as the folder says.

    Raises:
        ConfigError: for a code that the vocabulary lacks, and for any of a model that does not take them here.
    """
    if isinstance(model, Transformer):
        return with_languages(tokenizer, source, target)
    for side, code in (("source", source), ("target", target)):
        if code is not None:
            name = model.config.architecture
            raise ConfigError(f"{KNOBS[side]} = {code}: {name} has no languages here, as NLLB, M2M100 and mBART have")
    return tokenizer


def write_in(model: Model, tokenizer: Tokenizer) -> None:
    """Have a model write in the target language of its tokenizer, if that has one."""
    languages = tokenizer.languages
    if languages is None or languages.target is None:
        return
    token = tokenizer.id_of(languages.token(languages.target))
    told = settings_of(model.generation_config, model.source_config)
    if languages.scheme.starts:
        model.config = replace(model.config, decoder_start=token)
        told = {name: value for name, value in told.items() if name != "forced_bos_token_id"}
        model.generation_config = told | {"decoder_start_token_id": token}
    else:
        model.generation_config = told | {"forced_bos_token_id": token}
