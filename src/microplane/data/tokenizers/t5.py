"""Vocabularies of the T5 family: SentencePiece with sentinels behind its pieces, and ByT5's bytes without any file.

Sentinels (<extra_id_0> ...) mark the gaps of span corruption (arXiv 1910.10683, 3.1.4). Every text ends with </s>.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from microplane.data.tokenizers.folder import CONFIG, TokenizerFolder
from microplane.data.tokenizers.gguf import byte_spelling
from microplane.data.tokenizers.normaliser import SPACE, SentencePieceRules
from microplane.data.tokenizers.sentencepiece import build, read_model, take_rules
from microplane.errors import ModelError

SPIECE = "spiece.model"
CLASSES = ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast")  # whose spiece.model is T5's
BYTES = ("ByT5Tokenizer",)
SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2 in all of them
SENTINELS, BYTE_SENTINELS = 100, 125  # where a file does not say how many


def is_spiece(folder: TokenizerFolder) -> bool:
    """Whether a `spiece.model` is there that is read as T5's is: other families put other tokens around a text."""
    named, family = folder.config.get("tokenizer_class"), folder.model_config.get("model_type")
    ours = named in CLASSES if named else family is None or "t5" in str(family)
    return ours and folder.has(SPIECE)


def build_spiece(folder: TokenizerFolder) -> tuple[Tokenizer, dict[str, str], SentencePieceRules]:
    """The backend of a `spiece.model`, its special tokens by their names, and its rules.

    Raises:
        ModelError: if it is damaged.
    """
    pieces, ids = read_model(folder.path / SPIECE)
    # mT5's sentinels are pieces that swallow the space before them
    texts = [text[1:] if text.startswith(SPACE) and _is_sentinel(text[1:]) else text for text in pieces.texts]
    swallow = [new for new, text in zip(texts, pieces.texts, strict=True) if new != text]
    types = [0 if text in swallow else kind for text, kind in zip(texts, pieces.types, strict=True)]
    pieces = replace(pieces, texts=texts, types=types)
    backend = build(pieces)
    backend.add_special_tokens([AddedToken(text, lstrip=True, normalized=False, special=True) for text in swallow])
    count = 0 if swallow else _count(folder, SENTINELS)
    _add(backend, [f"<extra_id_{number}>" for number in reversed(range(count))])  # the first has the highest id
    own = {f"{name}_token": texts[token] for name, token in ids.items()}
    return backend, own, take_rules(backend, pieces)


def build_bytes(folder: TokenizerFolder) -> tuple[Tokenizer, dict[str, str]]:
    """ByT5's (arXiv 2105.13626): a token for each byte, its number plus 3, and sentinels behind them."""
    vocab = {text: token for token, text in enumerate((*SPECIAL, *byte_spelling()))}
    backend = Tokenizer(BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    # spaces around them are theirs, as in transformers
    marks = [AddedToken(text, lstrip=True, rstrip=True, normalized=False, special=True) for text in SPECIAL]
    backend.add_special_tokens(marks)
    _add(backend, [f"<extra_id_{number}>" for number in range(_count(folder, BYTE_SENTINELS))])
    return backend, dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))


def _count(folder: TokenizerFolder, usual: int) -> int:
    """How many sentinels: as told, or as many as are listed, which transformers 5 does and tells 0."""
    listed = sum(map(_is_sentinel, folder.special_tokens(())[1]))
    told = folder.config.get("extra_ids", usual)
    if type(told) is not int or told < 0:
        raise ModelError(f"{folder.path / CONFIG} has extra_ids = {told!r}: expected how many sentinels there are")
    return listed or told


def _is_sentinel(text: Any) -> bool:
    return isinstance(text, str) and text.startswith("<extra_id_") and text[10:-1].isdigit()


def _add(backend: Tokenizer, sentinels: list[str]) -> None:
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in sentinels])
