"""The tokenizer that GGUF metadata describe, rebuilt for the `tokenizers` library with the ids of llama.cpp.

A GGUF file has the tokens, and either the merges of a byte-level BPE or the scores of SentencePiece. How text is cut
before merging is only named (tokenizer.ggml.pre), and what else follows from that name is in llama.cpp's
src/llama-vocab.cpp alone.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from microplane.data.tokenizers.sentencepiece import (
    CONTROL,
    USER_DEFINED,
    Pieces,
    add_special,
    bpe_merges,
    build,
    build_gemma,
)
from microplane.errors import ModelError
from microplane.models.files.gguf_format import GgufFile

KEY = "tokenizer.ggml."
MODELS = ("gpt2", "llama")  # byte-level BPE, SentencePiece
GEMMAS = ("gemma", "gemma2", "gemma3")

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CAPITAL, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITAL}*{SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{CAPITAL}+{SMALL}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = None  # the cut that pre_tokenizers.ByteLevel makes itself
# SmolLM's own tokenizer also sets every digit apart. Its merges never join ASCII digits, so the ids differ only for
# other numerals after a space (" ½"); they are kept as transformers gives them for the same file.
CUTS = {
    "gpt-2": GPT2,
    "default": GPT2,
    "smollm": GPT2,
    "olmo": GPT2,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon3": LLAMA3,
    "pixtral": LLAMA3,
    "smaug-bpe": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "megrez": QWEN2,
    "tekken": TEKKEN,
}

# Whole words that are in the vocabulary are tokens, whether merges lead there or not; and a text begins with BOS.
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")


def puts_bos(file: GgufFile) -> bool:
    """Whether a text begins with BOS. Where a file does not say, the kind of its vocabulary decides."""
    usual = file.metadata[f"{KEY}model"] == "llama" or file.metadata.get(f"{KEY}pre") in WHOLE_WORDS
    return bool(file.metadata.get(f"{KEY}add_bos_token", usual))


def build_from_gguf(file: GgufFile) -> Tokenizer:
    """The tokenizer of the file, without anything that is put before or behind a text.

    Raises:
        ModelError: if it has no vocabulary, or one of a kind that is not supported.
    """
    model = file.metadata.get(f"{KEY}model")
    if model not in MODELS:
        raise ModelError(f"{file.path} has a tokenizer of type {model!r}; supported are {', '.join(MODELS)}")
    texts = _list(file, "tokens", str)
    types = _list(file, "token_type", int) if f"{KEY}token_type" in file.metadata else [1] * len(texts)
    if len(types) != len(texts):
        raise ModelError(f"{file.path} is damaged: it has {len(texts)} tokens and {len(types)} types of tokens")
    if model == "gpt2":
        return _byte_level(file, texts, types)
    if file.metadata.get("general.architecture") in GEMMAS:
        return build_gemma(texts, types)
    scores = _list(file, "scores", float)
    if len(scores) != len(texts):
        raise ModelError(f"{file.path} is damaged: it has {len(texts)} tokens and {len(scores)} scores")
    prefix = "behind special" if file.metadata.get(f"{KEY}add_space_prefix", True) else "never"
    merges = bpe_merges(texts, [-score for score in scores])
    return build(Pieces(texts, scores, types, prefix=prefix), merges)


def _list(file: GgufFile, name: str, kind: type) -> list[Any]:
    value = file.metadata.get(KEY + name)
    if not isinstance(value, list) or not value or type(value[0]) is not kind:  # GGUF's lists are of one type
        raise ModelError(
            f"{file.path} has no {KEY}{name}: its tokenizer is incomplete. Use another conversion of the model"
        )
    return value


def _byte_level(file: GgufFile, texts: list[str], types: list[int]) -> Tokenizer:
    name = file.metadata.get(f"{KEY}pre", "default")
    if name not in CUTS:
        raise ModelError(
            f"{file.path} cuts text by {name!r} ({KEY}pre), which is not known; known are {', '.join(CUTS)}"
        )
    spelling = byte_spelling()
    alphabet = set(spelling)
    ids = {}
    for token, (text, kind) in enumerate(zip(texts, types, strict=True)):
        if kind not in (CONTROL, USER_DEFINED) and not alphabet.issuperset(text):
            text = "".join(spelling[byte] for byte in text.encode("utf-8"))
        ids[text] = token
    merges = [tuple(merge.split(" ")) for merge in _list(file, "merges", str)]
    try:
        tokenizer = Tokenizer(BPE(ids, merges, ignore_merges=name in WHOLE_WORDS))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{file.path} is damaged: its merges do not fit its tokens ({error})") from None
    tokenizer.pre_tokenizer = _cut(CUTS[name])
    tokenizer.decoder = decoders.ByteLevel()
    add_special(tokenizer, texts, [kind if kind in (CONTROL, USER_DEFINED) else 0 for kind in types])
    return tokenizer


def _cut(pattern: str | None) -> pre_tokenizers.PreTokenizer:
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), bytes_only])


def byte_spelling() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: itself if it prints, else one above U+0100."""
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    above = iter(range(256, 512))
    return [chr(byte if byte in printing else next(above)) for byte in range(256)]
