"""A tokenizer for texts of two languages, by the codes that its vocabulary has. language_codes.py says where they are
put."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from microplane.data.tokenizers.folder import TokenizerFolder
from microplane.data.tokenizers.language_codes import KNOBS, SCHEMES, Languages, Scheme
from microplane.data.tokenizers.tokenizer import Tokenizer, mark_special
from microplane.errors import ConfigError, nearest

LATER = "bn_IN"  # a language that mBART-50 has beside those of mBART


def scheme_of(tokenizer: Tokenizer) -> Scheme | None:
    """By the class that the folder names, or by the tokens of a model that these classes belong to."""
    folder = tokenizer.source
    if folder is None:
        return None
    named = folder.config.get("tokenizer_class") or folder.model_config.get("tokenizer_class")
    name = str(named or "").removesuffix("Fast")
    if name not in SCHEMES:
        name = _by_tokens(tokenizer, folder)
    if name not in SCHEMES:
        return None
    scheme = SCHEMES[name]
    return replace(scheme, behind=True) if folder.config.get("legacy_behaviour") else scheme


def _by_tokens(tokenizer: Tokenizer, folder: TokenizerFolder) -> str:
    kind = folder.model_config.get("model_type")
    if kind == "m2m_100":
        return "M2M100Tokenizer" if tokenizer.id_of("__en__") is not None else "NllbTokenizer"
    if kind == "mbart" and tokenizer.id_of("en_XX") is not None:
        return "MBart50Tokenizer" if tokenizer.id_of(LATER) is not None else "MBartTokenizer"
    return ""


def codes_of(tokenizer: Tokenizer, scheme: Scheme) -> tuple[str, ...]:
    """The codes that the vocabulary has a token for, in the order of their ids."""
    backend = tokenizer.backend
    added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
    known: Mapping[str, int] = added
    if not any(re.fullmatch(scheme.pattern, text) for text in added):
        known = backend.get_vocab()
    found = [(number, match[1]) for text, number in known.items() if (match := re.fullmatch(scheme.pattern, text))]
    return tuple(code for _, code in sorted(found))


def with_languages(tokenizer: Tokenizer, source: str | None = None, target: str | None = None) -> Tokenizer:
    """The same for texts of these languages; what is None is as the tokenizer was saved.

    Args:
        source: code of what is read.
        target: and of what is written.

    Raises:
        ConfigError: for codes that the vocabulary lacks, or for any where it has no languages.
    """
    given = {"source": source, "target": target}
    scheme = scheme_of(tokenizer)
    codes = codes_of(tokenizer, scheme) if scheme else ()
    if scheme is None or not codes:
        if side := next((side for side, code in given.items() if code is not None), None):
            raise ConfigError(
                f"{KNOBS[side]} = {given[side]}: the vocabulary of this model has no tokens of languages, as those of "
                "NLLB, M2M100 and mBART have. Leave it out"
            )
        return tokenizer
    told: Mapping[str, Any] = tokenizer.source.config if tokenizer.source else {}
    saved = {"source": told.get("src_lang"), "target": told.get("tgt_lang")}
    chosen: dict[str, str | None] = {}
    for side, code in given.items():
        if code is not None and code not in codes:
            raise ConfigError(f"{KNOBS[side]} = {code}: the vocabulary has no token of it.{_instead(code, codes)}")
        old = saved[side]
        chosen[side] = code or (old if isinstance(old, str) and old in codes else None)
    return _placed(tokenizer, Languages(scheme, codes, **chosen))


def _instead(code: str, codes: tuple[str, ...]) -> str:
    """Codes of the same language, else one that is spelled alike; and some of all."""
    own = re.split("[_-]", code.lower())[0]
    alike = [one for one in codes if one.lower().split("_")[0] == own]
    near = f" Did you mean {' or '.join(map(repr, alike))}?" if alike else nearest(code, codes)
    return f"{near} It has {len(codes)}: {', '.join(codes[:8])}{', ...' if len(codes) > 8 else ''}"


def _placed(tokenizer: Tokenizer, languages: Languages) -> Tokenizer:
    scheme, eos = languages.scheme, tokenizer.special_tokens["eos_token"]
    assert eos is not None, "the classes with languages have an end token"
    written, target = tokenizer.target, languages.target
    tokens = [languages.token(code) for code in languages.codes]
    if target is not None:
        backend = Backend.from_str(tokenizer.backend.to_str())
        backend.encode_special_tokens = tokenizer.backend.encode_special_tokens
        mark_special(backend, tokens)
        _surround(backend, [] if scheme.starts else [languages.token(target)], [eos])
        written = replace(tokenizer, backend=backend, target=None, languages=None)
    mark_special(tokenizer.backend, tokens)
    if languages.source is not None:
        source = languages.token(languages.source)
        _surround(tokenizer.backend, [] if scheme.behind else [source], [eos, source] if scheme.behind else [eos])
    return replace(tokenizer, target=written, languages=languages)


def _surround(backend: Backend, before: list[str], behind: list[str]) -> None:
    ids = [(text, backend.token_to_id(text)) for text in [*before, *behind]]
    backend.post_processor = TemplateProcessing([*before, "$A", *behind], [*before, "$A", "$B", *behind], ids)
