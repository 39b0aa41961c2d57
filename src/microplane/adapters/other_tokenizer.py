"""Whether transformers reads texts with the tokenizer of a written folder as it was trained here."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from microplane.data.tokenizers.folder import CONFIG
from microplane.data.tokenizers.tokenizer import LETTERS, Tokenizer
from microplane.data.tokenizers.transformers_classes import SAFE_CLASS, open_in_transformers
from microplane.errors import ModelError
from microplane.files import read_object, write_json

SENTENCES = ("The quick brown fox jumps over the lazy dog.", '{"name": "zest", "rank": 16}', "1, 2, 3, 5, 8, 13, 21")
LETTER_TEXTS = tuple(" ".join(LETTERS[start : start + 4]) for start in range(0, len(LETTERS), 4))


def agree_with_transformers(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[str]:
    """Have the tokenizer of a folder give the same ids in transformers, where naming another class is enough for that.

    Args:
        tokenizer: that the folder was written of.
        texts: of the rows that it was trained on, to compare on beside a few others.

    Yields:
        What was changed, and what transformers does otherwise all the same.
    """
    if find_spec("transformers") is None:
        yield "whether transformers gives the same ids was not tried, for it is not installed"
        return
    told = read_object(folder / CONFIG, ModelError, absent={})
    tried = [tokenizer.in_form(text) for text in (*texts, *SENTENCES)]
    others = _others(folder, tokenizer, tried)
    if others and (folder / "tokenizer.json").is_file() and told.get("tokenizer_class") != SAFE_CLASS:
        write_json(folder / CONFIG, {**told, "tokenizer_class": SAFE_CLASS})
        if len(left := _others(folder, tokenizer, tried)) < len(others):
            named = told.get("tokenizer_class") or "no tokenizer_class"
            count = f"{len(others):,} of {len(tried):,} texts"
            yield f"tokenizer_class is {SAFE_CLASS}, for with {named} transformers cuts {count} into other tokens"
            others = left
        else:
            write_json(folder / CONFIG, told)
    if others:
        yield (
            f"transformers cuts {len(others):,} of {len(tried):,} texts into other tokens than were trained, such as "
            f"{others[0][:60]!r}; give it ids from microplane.load(FOLDER).tokenizer"
        )
    elif tokenizer.unicode != "as-is" and _depends_on_form(folder):
        form = tokenizer.unicode.upper()
        yield (
            f"texts are brought to {form} here, and transformers does not do that: there, first "
            f"unicodedata.normalize({form!r}, text)"
        )


def _others(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """The texts that become other ids there; all of them if it cannot open the folder."""
    try:
        theirs = open_in_transformers(folder)
        return [text for text in texts if theirs(text).input_ids != tokenizer.encode(text)]
    except Exception:  # whatever a tokenizer of transformers fails with
        return list(texts)


def _depends_on_form(folder: Path) -> bool:
    theirs = open_in_transformers(folder)
    return any(theirs(text).input_ids != theirs(unicodedata.normalize("NFD", text)).input_ids for text in LETTER_TEXTS)
