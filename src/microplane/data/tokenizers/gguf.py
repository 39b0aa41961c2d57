"""The tokenizer that GGUF metadata describe, rebuilt for the `tokenizers` library with the ids of llama.cpp.

A GGUF file has the tokens, and either the merges of a byte-level BPE or the scores of SentencePiece. How text is cut
before merging is only named (tokenizer.ggml.pre), and what else follows from that name is in llama.cpp's
src/llama-vocab.cpp alone.
"""

from __future__ import annotations

import math
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from microplane.data.tokenizers.sentencepiece import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Pieces,
    add_special,
    bpe_merges,
    build,
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
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PUNCTUATION, NUMERAL = r"[\p{P}\$\+<=>\^~\|]+", r"\p{N}"
CUTS: dict[str, tuple[str, ...]] = {  # patterns: each cuts what the one before it left
    "default": (PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),  # also where a file names none
    **dict.fromkeys(("gpt-2", "olmo"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact"), (NUMERAL, GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), (QWEN2,)),
    "tekken": (TEKKEN,),
}

# Whole words that are in the vocabulary are tokens, whether merges lead there or not; and a text begins with BOS.
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")

ENDS = (  # texts of tokens that are control tokens whatever the file says, since they end an answer
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>"),
    *("<|end_of_text|>", "<eos>"),
)
STRIPPED = ("phi-3", "phi3")  # in a model's name: white space behind special tokens is left out, but for these
NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")
DEFAULTS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}  # the ids of special tokens where a file does not name them


def puts_bos(file: GgufFile) -> bool:
    """Whether a text begins with BOS. Where a file does not say, the kind of its vocabulary decides."""
    usual = file.metadata[f"{KEY}model"] == "llama" or file.metadata.get(f"{KEY}pre") in WHOLE_WORDS
    return switch(file, "add_bos_token", usual)


def puts_eos(file: GgufFile) -> bool:
    """Whether a text ends with EOS."""
    return switch(file, "add_eos_token", False)


def switch(file: GgufFile, name: str, usual: bool) -> bool:
    """Raises: ModelError, for a value that is neither true nor false, as llama.cpp does."""
    value = file.metadata.get(KEY + name, usual)
    if not isinstance(value, bool):
        raise ModelError(f"{file.path} is damaged: its {KEY}{name} is {value!r}, expected true or false")
    return value


def special_id(file: GgufFile, name: str) -> Any:
    """The id of a special token, as "bos", as the file has it, or else as it usually is; None where there is none."""
    usual = DEFAULTS.get(file.metadata[f"{KEY}model"], {}).get(name)
    known = usual is not None and usual < len(file.metadata[f"{KEY}tokens"])
    return file.metadata.get(f"{KEY}{name}_token_id", usual if known else None)


def ends(file: GgufFile) -> list[int]:
    """The tokens that end an answer, as the file names them; where it names none, those that are called so."""
    told = [special_id(file, name) for name in ("eos", "eot", "eom")]
    if all(token is None for token in told):
        told = [token for token, text in enumerate(file.metadata[f"{KEY}tokens"]) if text in ENDS]
    return list(dict.fromkeys(token for token in told if token is not None))


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
    types = [CONTROL if text in ENDS else kind for text, kind in zip(texts, types, strict=True)]
    if model == "gpt2":
        return _byte_level(file, texts, types)
    unscored = f"{KEY}scores" not in file.metadata and file.metadata.get("general.architecture") in GEMMAS
    scores = [0.0] * len(texts) if unscored else _list(file, "scores", float)  # merged in the order of ids
    if len(scores) != len(texts):
        raise ModelError(f"{file.path} is damaged: it has {len(texts)} tokens and {len(scores)} scores")
    if not all(map(math.isfinite, scores)):
        raise ModelError(f"{file.path} is damaged: its {KEY}scores hold NaN or infinity")
    prefix = "behind special" if switch(file, "add_space_prefix", True) else "never"
    merges = bpe_merges(texts, [-score for score in scores])
    tokenizer = build(Pieces(texts, scores, types, prefix=prefix), merges)
    if any(name in str(file.metadata.get("general.name", "")).lower() for name in STRIPPED):
        kinds = [0 if text in NOT_STRIPPED else kind for text, kind in zip(texts, types, strict=True)]
        add_special(tokenizer, texts, kinds, stripped=True)
    return tokenizer


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
        if kind not in (CONTROL, USER_DEFINED, UNKNOWN) and not alphabet.issuperset(text):
            text = "".join(spelling[byte] for byte in text.encode("utf-8"))
        ids[text] = token
    merges = [tuple(merge.split(" ")) for merge in _list(file, "merges", str)]
    try:
        tokenizer = Tokenizer(BPE(ids, merges, ignore_merges=name in WHOLE_WORDS))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{file.path} is damaged: its merges do not fit its tokens ({error})") from None
    tokenizer.pre_tokenizer = _cut(CUTS[name])
    tokenizer.decoder = decoders.ByteLevel()
    add_special(tokenizer, texts, types)
    return tokenizer


def _cut(patterns: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_spelling() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: itself if it prints, else one above U+0100."""
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    above = iter(range(256, 512))
    return [chr(byte if byte in printing else next(above)) for byte in range(256)]
