"""Vocabularies of Vietnamese models: PhoBERT's (arXiv 2003.00744) and BARTpho's for syllables (arXiv 2109.09701).

Both name their tokens in a list of their own, which has fewer tokens than can be made of a text; the others are
unknown. They get ids behind the list, so that the text is cut as it is in transformers' classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from microplane.data.tokenizers.folder import TokenizerFolder
from microplane.data.tokenizers.normaliser import SentencePieceRules
from microplane.data.tokenizers.sentencepiece import (
    CONTROL,
    UNKNOWN,
    UNMATCHABLE,
    build_in_order,
    in_order_of,
    read_model,
)
from microplane.errors import ModelError

PHOBERT, BARTPHO = "PhobertTokenizer", "BartphoTokenizer"
VOCABULARY, CODES = "vocab.txt", "bpe.codes"
MODEL, LIST = "sentencepiece.bpe.model", "dict.txt"
FILES = {PHOBERT: (VOCABULARY, CODES), BARTPHO: (MODEL, LIST)}
SPECIAL = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
GOES_ON = "@@"  # behind a token that does not end its word
ENDS = "</w>"  # behind one that does, in the codes


@dataclass(frozen=True)
class Listed:
    """A tokenizer whose model has rows for `known` tokens; ids from there on are unknown."""

    backend: Tokenizer
    special: Mapping[str, str]
    known: int
    rules: SentencePieceRules | None = None
    unmatchable_prefix: str = ""


def build_vietnamese(folder: TokenizerFolder) -> Listed | None:
    """The tokenizer of a folder with the files of one of these classes; None for any other folder.

    Raises:
        ModelError: for files that are damaged.
    """
    named = folder.config.get("tokenizer_class") or folder.model_config.get("tokenizer_class")
    kind = next((kind for kind in FILES if named == kind or (named is None and folder.has(*FILES[kind]))), None)
    if kind is None or not folder.has(*FILES[kind]):
        return None
    told, _ = folder.special_tokens(tuple(SPECIAL))
    special = {name: told[name] or text for name, text in SPECIAL.items()}
    listed = _phobert(folder, special) if kind == PHOBERT else _bartpho(folder, special)
    _surround(listed.backend, special, mask_takes_space=kind == BARTPHO)
    return listed


def _phobert(folder: TokenizerFolder, special: Mapping[str, str]) -> Listed:
    table = _table(folder.path / VOCABULARY, special)
    spelled = {text if text in special.values() else _with_end(text): token for text, token in table.items()}
    merges = []
    for line in _lines(folder.path / CODES):
        if len(parts := line.split()) < 3:
            raise ModelError(f"{folder.path / CODES} has the line {line[:60]!r}: expected two parts and a number")
        merges.append((parts[0], parts[1]))
    for first, second in merges:  # what a text is made of on the way, and what it may end as
        for text in (first, second, first + second):
            spelled.setdefault(text, len(spelled))
    backend = Tokenizer(BPE(spelled, merges, unk_token=special["unk_token"], end_of_word_suffix=ENDS))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S+\n?"), behavior="removed", invert=True)
    backend.decoder = decoders.BPEDecoder(suffix=ENDS)
    return Listed(backend, special, len(table))


def _with_end(text: str) -> str:
    return text.removesuffix(GOES_ON) if text.endswith(GOES_ON) else text + ENDS


def _bartpho(folder: TokenizerFolder, special: Mapping[str, str]) -> Listed:
    table = _table(folder.path / LIST, special)
    pieces, _ = read_model(folder.path / MODEL)
    made = (text for text, kind in zip(pieces.texts, pieces.types, strict=True) if kind not in (UNKNOWN, CONTROL))
    order = dict.fromkeys([*table, *made])
    backend, rules = build_in_order(in_order_of(order, pieces, special["unk_token"], special.values()))
    return Listed(backend, special, len(table), rules, UNMATCHABLE)


def _table(file: Path, special: Mapping[str, str]) -> dict[str, int]:
    """The ids of the tokens of a list: the special ones stand before it, and the mask behind."""
    first = (special[name] for name in ("bos_token", "pad_token", "eos_token", "unk_token", "sep_token", "cls_token"))
    texts = [*first, *(line.split()[0] for line in _lines(file)), special["mask_token"]]
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {file}: {error}") from None


def _surround(backend: Tokenizer, special: Mapping[str, str], mask_takes_space: bool) -> None:
    before, behind = special["cls_token"], special["sep_token"]
    ids = [(text, backend.token_to_id(text)) for text in dict.fromkeys((before, behind))]
    pair = f"{before} $A {behind} {behind} $B {behind}"
    backend.post_processor = processors.TemplateProcessing(f"{before} $A {behind}", pair, special_tokens=ids)
    mask = special["mask_token"]
    backend.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in dict.fromkeys(special.values()) if text != mask]
    )
    backend.add_special_tokens([AddedToken(mask, lstrip=mask_takes_space, normalized=False, special=True)])
