"""A tokenizer as GGUF has it, by what llama.cpp does with it; the inverse of data/tokenizers/gguf.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from microplane.data.tokenizers.gguf import CUTS, KEY, WHOLE_WORDS
from microplane.data.tokenizers.normaliser import SPACE
from microplane.data.tokenizers.sentencepiece import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import AdapterError

UNUSED, BYTE = 5, 6  # further types of tokens
ENDS = ("eos", "eot", "eom")  # as many tokens as can end an answer
PREFERRED = ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "default")  # of names that cut alike


def token_metadata(tokenizer: Tokenizer, stops: Sequence[int], rows: int) -> dict[str, Any]:
    """The keys below `tokenizer.`, but for the chat template.

    Args:
        stops: tokens that end an answer, first the one that answers are trained to end with.
        rows: of the embedding; what the tokenizer has no token for is filled with tokens that nothing makes.

    Raises:
        AdapterError: for a tokenizer that llama.cpp cannot be.
    """
    told = json.loads(tokenizer.backend.to_str())
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    if len(vocabulary) > rows or max(vocabulary.values()) >= rows:
        raise AdapterError(f"the tokenizer has {len(vocabulary):,} tokens and the model rows for {rows:,}: "
                           "GGUF needs a row for each")  # fmt: skip
    texts, types = [f"[PAD{token}]" for token in range(rows)], [UNUSED] * rows
    for text, token in vocabulary.items():
        texts[token], types[token] = text, NORMAL
    for token, added in tokenizer.backend.get_added_tokens_decoder().items():
        texts[token], types[token] = added.content, CONTROL if added.special else USER_DEFINED
    keys = _bpe(told, texts) if tokenizer.byte_level else _sentencepiece(tokenizer, told, texts, types)
    keys |= {"tokens": texts, "token_type": types} | _special(tokenizer, stops)
    return {KEY + key: value for key, value in keys.items()}


def _bpe(told: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    model = told["model"]
    if model["type"] != "BPE":
        raise AdapterError(f"llama.cpp has no byte-level tokenizer of the kind {model['type']}")
    if not model["merges"]:
        raise AdapterError("the tokenizer merges nothing, and llama.cpp opens no byte-level BPE without merges")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"model": "gpt2", "pre": cut_name(told), "merges": merges}


def cut_name(told: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text before merging.

    Raises:
        AdapterError: if it has none that is known here.
    """
    steps = told["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    splits = [step for step in steps if step.get("type") == "Split"]
    patterns = [step["pattern"].get("Regex") for step in splits]
    apart = all((step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True)) for step in splits)
    own = any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps)
    digits = [step for step in steps if step.get("type") == "Digits"]
    spaced = any(step.get("add_prefix_space") for step in steps)
    kinds = {step.get("type") for step in steps}
    whole = bool(told["model"].get("ignore_merges"))
    if not spaced and apart and kinds <= {"Split", "ByteLevel", "Digits"}:
        if own and not patterns and not whole and (not digits or digits[0].get("individual_digits")):
            return "smollm" if digits else "gpt-2"
        for name in PREFERRED:
            if not own and not digits and list(CUTS[name]) == patterns and (name in WHOLE_WORDS) == whole:
                return name
    raise AdapterError(
        f"the tokenizer cuts text in a way ({', '.join(sorted(str(k) for k in kinds))}) that llama.cpp has no name for "
        f"among those known here ({', '.join(PREFERRED)})"
    )


def _sentencepiece(tokenizer: Tokenizer, told: Mapping[str, Any], texts: list[str], types: list[int]) -> dict[str, Any]:
    """llama.cpp merges the pair whose result has the highest score: minus the place of its first merge."""
    model = told["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback"):
        raise AdapterError(
            f"llama.cpp's decoders have byte-level BPE, and SentencePiece's BPE with bytes; this is {model['type']}: "
            "--to hf writes it"
        )
    scores = [0.0] * len(texts)
    places: dict[str, int] = {}
    for place, merge in enumerate(model["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        places.setdefault(first + second, place)
    unknown, prefix = model.get("unk_token"), tokenizer.encode("a", special=False)
    for token, text in enumerate(texts):
        scores[token] = -float(places[text]) if text in places else 0.0
        if types[token] in (NORMAL, CONTROL) and text == unknown:
            types[token] = UNKNOWN
        elif types[token] == NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[token] = BYTE
        elif types[token] == USER_DEFINED and text.strip(SPACE) == "":
            texts[token] = text.replace(SPACE, " ")  # as llama.cpp looks for it in a text
    spaced = bool(prefix) and texts[prefix[0]].startswith(SPACE)
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": spaced}


def _special(tokenizer: Tokenizer, stops: Sequence[int]) -> dict[str, Any]:
    """The template writes the tokenizer's own end token, so that one stands first; the others end an answer too."""
    around, named = tokenizer.encode("a"), tokenizer.special_tokens
    plain = tokenizer.encode("a", special=False)
    eos = tokenizer.id_of(named["eos_token"]) if named["eos_token"] else None
    ends = list(dict.fromkeys(token for token in (eos, *stops) if token is not None))
    keys: dict[str, Any] = {f"{key}_token_id": token for key, token in zip(ENDS, ends, strict=False)}
    for key, token in (("bos", tokenizer.bos_id), ("unknown", tokenizer.unk_id), ("padding", tokenizer.pad_id)):
        if token is not None:
            keys[f"{key}_token_id"] = token
    before = around[: len(around) - len(plain)] if around != plain else []
    keys["add_bos_token"] = tokenizer.bos_id is not None and before[:1] == [tokenizer.bos_id]
    keys["add_eos_token"] = eos is not None and around != plain and around[-1] == eos
    return keys


def more_ends(keys: Mapping[str, Any], stops: Sequence[int]) -> list[int]:
    """The tokens that end an answer here and have no place in the file."""
    placed = {keys.get(f"{KEY}{end}_token_id") for end in ENDS}
    return [stop for stop in stops if stop not in placed]
