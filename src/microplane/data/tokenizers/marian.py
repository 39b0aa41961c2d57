"""Vocabularies of Marian's translation models: a SentencePiece model for each side, and a table of ids.

The table (vocab.json) is shared, or each side has its own. It alone decides on ids: SentencePiece cuts a text into
pieces, and these are looked up. So each side is rebuilt in the table's order, with the pieces that only the other side
makes spelled so that no text can match them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from microplane.data.tokenizers.folder import TokenizerFolder
from microplane.data.tokenizers.normaliser import SentencePieceRules
from microplane.data.tokenizers.sentencepiece import build_in_order, in_order_of, read_model
from microplane.errors import ModelError
from microplane.files import read_object

SOURCE, TARGET, VOCAB, TARGET_VOCAB = "source.spm", "target.spm", "vocab.json", "target_vocab.json"
SPECIAL = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}  # unless tokenizer_config.json differs


@dataclass(frozen=True)
class Sides:
    source: Tokenizer
    source_rules: SentencePieceRules
    target: Tokenizer
    target_rules: SentencePieceRules


def build_marian(folder: TokenizerFolder, special: Mapping[str, str | None]) -> Sides:
    """Both sides of the folder of a MarianTokenizer; `special` has its unk, eos and pad tokens.

    A piece that the table lacks is not made, so that its text is cut finer; transformers would make it unknown.

    Raises:
        ModelError: if a file is missing or damaged, or does not fit the others.
    """
    path, apart = folder.path, bool(folder.config.get("separate_vocabs"))
    names = (SOURCE, TARGET, VOCAB, *[TARGET_VOCAB] * apart)
    if missing := [name for name in names if not folder.has(name)]:
        raise ModelError(f"{path} lacks {', '.join(missing)}: a translation model's tokenizer is {', '.join(names)}")
    texts = [text for text in special.values() if text]
    source = _side(path / SOURCE, _table(path / VOCAB, special), texts)
    target = _side(path / TARGET, _table(path / (TARGET_VOCAB if apart else VOCAB), special), texts)
    return Sides(*source, *target)


def _table(file: Path, special: Mapping[str, str | None]) -> list[str]:
    """Pieces by id."""
    ids = read_object(file, ModelError)
    if sorted(ids.values(), key=str) != sorted(range(len(ids)), key=str):
        raise ModelError(f"{file} must give its {len(ids)} pieces the ids 0 to {len(ids) - 1}, each once")
    for name in ("unk_token", "eos_token"):
        if special.get(name) not in ids:
            raise ModelError(f"{file} has no {special.get(name)!r}, which is the {name}")
    return sorted(ids, key=lambda text: ids[text])


def _side(file: Path, table: list[str], special: list[str]) -> tuple[Tokenizer, SentencePieceRules]:
    pieces, _ = read_model(file)
    if not pieces.unigram:
        raise ModelError(f"{file} is a SentencePiece model of the BPE kind; for translation only unigram is supported")
    languages = [text for text in table if text.startswith(">>") and text.endswith("<<")]  # to write in, as in >>fra<<
    return build_in_order(in_order_of(table, pieces, special[0], special[1:], languages))
