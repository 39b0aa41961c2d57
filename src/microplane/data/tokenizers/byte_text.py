"""Text of tokens that are spelled in bytes: a letter stands for each byte (see `byte_spelling`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from microplane.data.tokenizers.gguf import byte_spelling

BYTES = {letter: byte for byte, letter in enumerate(byte_spelling())}


def text_of(piece: str) -> str:
    """What a token of bytes stands for; its own spelling where that is a part of a character."""
    try:
        return bytes(BYTES[letter] for letter in piece).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return piece


def plain_added(backend: Backend) -> dict[int, AddedToken]:
    """Added tokens that the library's decoder takes for bytes, since each of their letters could stand for one: of
    `<début>` it makes `<d`, a byte that is no character, and `but>`. Not those that merges make of bytes, too."""
    added = backend.get_added_tokens_decoder().items()
    found = {
        number: token
        for number, token in added
        if len(token.content) > 1 and not token.content.isascii() and all(letter in BYTES for letter in token.content)
    }
    if found and isinstance(backend.model, BPE):
        merges = json.loads(backend.to_str())["model"]["merges"]
        made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges}
        found = {number: token for number, token in found.items() if token.content not in made}
    return found


def decoded(backend: Backend, ids: Sequence[int], skip_special: bool, plain: Mapping[int, AddedToken]) -> str:
    """As the library decodes, but with the tokens of `plain_added` as they are written."""
    if not plain or plain.keys().isdisjoint(ids):
        return backend.decode(list(ids), skip_special_tokens=skip_special)
    parts, since = [], 0
    for place, number in enumerate(ids):
        if number in plain:
            parts.append(backend.decode(list(ids[since:place]), skip_special_tokens=skip_special))
            parts.append("" if skip_special and plain[number].special else plain[number].content)
            since = place + 1
    return "".join([*parts, backend.decode(list(ids[since:]), skip_special_tokens=skip_special)])
