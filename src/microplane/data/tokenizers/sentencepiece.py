"""SentencePiece vocabularies, from a `tokenizer.model` or from GGUF metadata, rebuilt for the `tokenizers` library.

A SentencePiece BPE names no merges: which two pieces make a third follows from the pieces, and the order of merging
from their scores or places (arXiv 1808.06226).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from microplane.data.tokenizers.normaliser import SPACE, SentencePieceRules, rules_of_model
from microplane.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of pieces, in both kinds of files
UNMATCHABLE = "\x01"  # before a token of a table that the model does not make: no text contains it
UNIGRAM_MODEL, BPE_MODEL = 1, 2  # trainer_spec.model_type

PREFIXES = {  # where a space is put -> how the `tokenizers` library says so; None: by a normaliser
    "first": "first",  # before the text, unless there is one
    "always": "always",  # before the text and behind special tokens; by the library's own step unless there is one
    "behind special": None,  # the same, by a normaliser and so beside one that is there: llama.cpp
    "never": "never",
}


@dataclass(frozen=True)
class Pieces:
    """A vocabulary, and how text is prepared for it. Lists go by token id."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    unigram: bool = False
    prefix: str = "first"  # where a space is put, a key of `PREFIXES`
    suffix: str = ""  # a space that is put behind a text instead
    squeeze: bool = False  # runs of spaces count as one
    charsmap: bytes = b""  # SentencePiece's compiled normalisation; none if empty
    model: bytes = b""  # the file itself, where the pieces are of one
    own: frozenset[str] = frozenset()  # the file's user-defined pieces

    @property
    def in_words(self) -> bool:
        """Whether no piece goes on behind a space, so that a text can be cut there before the pieces are looked for."""
        plain = (text for text, kind in zip(self.texts, self.types, strict=True) if kind != USER_DEFINED)
        return all(SPACE not in text[1:] for text in plain)


def bpe_merges(texts: Sequence[str], rank: Sequence[float]) -> list[tuple[str, str]]:
    """All ways in which two pieces make a third, those of the piece with the lowest rank first.

    In which order the ways to make one and the same piece stand, no text is known to show.
    """
    ids = {text: token for token, text in enumerate(texts)}
    found = []
    for text, token in ids.items():
        for cut in range(1, len(text)):
            if text[:cut] in ids and text[cut:] in ids:
                found.append((rank[token], token, cut, text))
    return [(text[:cut], text[cut:]) for _, _, cut, text in sorted(found)]


def build(pieces: Pieces, merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    """A tokenizer with the ids of `pieces`; `merges` are in the order of ids where none are given."""
    unk = next((token for token, kind in enumerate(pieces.types) if kind == UNKNOWN), None)
    if pieces.unigram:
        vocab = list(zip(pieces.texts, pieces.scores, strict=True))
        tokenizer = Tokenizer(Unigram(vocab, unk_id=unk, byte_fallback="<0x00>" in pieces.texts))
    else:
        ids = {text: token for token, text in enumerate(pieces.texts)}
        merges = bpe_merges(pieces.texts, range(len(ids))) if merges is None else merges
        unk_text = None if unk is None else pieces.texts[unk]
        tokenizer = Tokenizer(BPE(ids, merges, unk_token=unk_text, fuse_unk=True, byte_fallback=True))
    if steps := _normalizers(pieces):
        tokenizer.normalizer = normalizers.Sequence(steps)
    if (scheme := PREFIXES[pieces.prefix]) is not None:
        split = pieces.unigram and pieces.in_words
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=split)
    tokenizer.decoder = _decoder(pieces.prefix != "never", bool(pieces.suffix))
    add_special(tokenizer, pieces.texts, pieces.types)
    return tokenizer


def take_rules(tokenizer: Tokenizer, pieces: Pieces) -> SentencePieceRules:
    """Have the package follow the model's rules in place of the tokenizer's own steps, which are not quite the same."""
    rules = rules_of_model(tokenizer, pieces.model, pieces.prefix, pieces.suffix, pieces.own)
    split = pieces.unigram and pieces.in_words
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=split)
    return rules


def _normalizers(pieces: Pieces) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.squeeze:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if PREFIXES[pieces.prefix] is None:
        steps += [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    return steps


def _decoder(prefix: bool, suffix: bool = False, first: Sequence[decoders.Decoder] = ()) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    added = [decoders.Strip(content=" ", left=int(prefix), right=int(suffix))] * (prefix or suffix)
    return decoders.Sequence([*first, *steps, *added])


def in_order_of(
    table: Iterable[str], pieces: Pieces, unknown: str, control: Collection[str], marked: Collection[str] = ()
) -> Pieces:
    """The pieces of a model in the order of a table of ids, which alone decides on them. What the model does not make
    is spelled so that no text matches it, but for special tokens and those that are `marked` in a text."""
    own = dict(zip(pieces.texts, zip(pieces.scores, pieces.types, strict=True), strict=True))

    def placed(text: str) -> tuple[str, float, int]:
        if text == unknown or text in control:
            return text, 0.0, UNKNOWN if text == unknown else CONTROL
        if text in marked:
            return text, 0.0, USER_DEFINED
        score, kind = own.get(text, (0.0, CONTROL))
        return (UNMATCHABLE + text, 0.0, NORMAL) if kind in (UNKNOWN, CONTROL) else (text, score, kind)

    texts, scores, types = (list[Any](column) for column in zip(*map(placed, table), strict=True))
    return replace(pieces, texts=texts, scores=scores, types=types)


def build_in_order(pieces: Pieces) -> tuple[Tokenizer, SentencePieceRules]:
    """A tokenizer of what `in_order_of` gives, which writes every token of the table as it stands there."""
    merges = None if pieces.unigram else bpe_merges(pieces.texts, [-score for score in pieces.scores])
    tokenizer = build(pieces, merges)
    whole: list[decoders.Decoder] = [decoders.Replace(UNMATCHABLE, "")]
    tokenizer.decoder = _decoder(pieces.prefix != "never", bool(pieces.suffix), whole)
    return tokenizer, take_rules(tokenizer, pieces)


def add_special(tokenizer: Tokenizer, texts: Sequence[str], types: Sequence[int], stripped: bool = False) -> None:
    """Tokens that are looked for in the text as they are: control tokens, which decoding can skip, and the user's.

    Args:
        stripped: white space behind them is left out.
    """
    marked, how = list(zip(texts, types, strict=True)), {"normalized": False, "rstrip": stripped}
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, **how) for text, kind in marked if kind in (UNKNOWN, CONTROL)]
    )
    tokenizer.add_tokens([AddedToken(text, **how) for text, kind in marked if kind == USER_DEFINED])


def read_model(path: Path) -> tuple[Pieces, dict[str, int]]:
    """A `tokenizer.model`: its pieces, and the ids of "bos", "eos", "unk" and "pad" where it has them.

    The file is a protocol buffer (sentencepiece_model.proto); the few fields that matter are read here.

    Raises:
        ModelError: if it is not a SentencePiece model of the BPE or unigram kind.
    """
    try:
        return _read_model(path, path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    except (struct.error, LookupError, AttributeError, TypeError, ValueError):
        raise ModelError(
            f"{path} is not a SentencePiece model, or is damaged. Fetch it again, or use a folder with a tokenizer.json"
        ) from None


def _read_model(path: Path, data: bytes) -> tuple[Pieces, dict[str, int]]:
    texts, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            texts.append(piece[1].decode("utf-8"))
            scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
            types.append(piece.get(3, 1))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not texts:
        raise ValueError
    kind = trainer.get(3, UNIGRAM_MODEL)
    if kind not in (UNIGRAM_MODEL, BPE_MODEL):
        raise ModelError(f"{path} is a SentencePiece model of type {kind}; supported are unigram (1) and BPE (2)")
    squeeze, spaced = bool(normalizer.get(4, 1)), bool(normalizer.get(3, 1))
    behind = bool(trainer.get(24, 0))  # treat_whitespace_as_suffix
    pieces = Pieces(
        texts,
        scores,
        types,
        unigram=kind == UNIGRAM_MODEL,
        prefix="never" if behind or not spaced else "always",
        suffix=SPACE if behind and spaced else "",
        squeeze=squeeze,
        charsmap=normalizer.get(2, b""),
        model=data,
        own=frozenset(text for text, kind in zip(texts, types, strict=True) if kind == USER_DEFINED),
    )
    usual = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    ids = {name: _signed(trainer.get(number, default)) for name, (number, default) in usual.items()}
    return pieces, {name: token for name, token in ids.items() if 0 <= token < len(texts)}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of one message of a protocol buffer: (number, integer or bytes)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}[wire] if wire in (1, 5) else len(data) + 1
        if at + size > len(data):
            raise ValueError
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
