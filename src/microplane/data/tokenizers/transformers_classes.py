"""Where transformers puts a pipeline of its own in place of the one that a tokenizer.json describes.

transformers 5 takes vocabulary and merges from the file, and builds the rest anew, if `tokenizer_config.json` names one
of these classes. Where the two differ, so do the ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

PIPELINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # steps of the normaliser, and of the pre-tokenizer
    "T5": (("Precompiled",), ("Metaspace",)),
    "XLMRoberta": (("Precompiled",), ("Metaspace",)),
    "Bert": (("BertNormalizer",), ("BertPreTokenizer",)),
    "GPT2": ((), ("ByteLevel",)),
    "Roberta": ((), ("ByteLevel",)),
    "Qwen2": (("NFC",), ("Split", "ByteLevel")),
    "Gemma": (("Replace",), ("Split",)),
}
SAFE_CLASS = "PreTrainedTokenizerFast"  # takes the file as it is
_SWITCHES = {  # of BERT's normaliser: in tokenizer.json; in tokenizer_config.json, and what it is if not said there
    "lowercase": ("do_lower_case", True),
    "strip_accents": ("strip_accents", None),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
}


def open_in_transformers(folder: Path) -> Any:
    """transformers' tokenizer of a folder; code from a repository is never run."""
    from transformers import AutoTokenizer

    from microplane.models.external.library import quiet

    with quiet():
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def replaced(backend: Backend, config: Mapping[str, Any]) -> str:
    """What of the backend's pipeline transformers replaces by something else; empty if nothing.

    Args:
        config: tokenizer_config.json.
    """
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    if name not in PIPELINES:
        return ""
    theirs = PIPELINES[name]
    described = json.loads(backend.to_str())
    own = [_steps(described[part]) for part in ("normalizer", "pre_tokenizer")]
    kinds = [tuple(step["type"] for step in steps) for steps in own]
    found = []
    if kinds[0] != theirs[0] and not (kinds[0] == () and theirs[0] == ("Precompiled",)):
        found.append(f"the normaliser ({', '.join(kinds[0]) or 'none'}, there {', '.join(theirs[0]) or 'none'})")
    elif name == "Bert" and (switches := _other_switches(own[0][0], config)):
        found.append(f"the normaliser's {switches}")
    if kinds[1] != theirs[1]:
        found.append(f"the pre-tokenizer ({', '.join(kinds[1]) or 'none'}, there {', '.join(theirs[1])})")
    return " and ".join(found)


def _other_switches(own: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    there = {name: config.get(key, usual) for name, (key, usual) in _SWITCHES.items()}
    return ", ".join(f"{name} ({own[name]}, there {value})" for name, value in there.items() if own[name] != value)


def _steps(described: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a part of a tokenizer.json, but for those that only tidy white space, as all these classes do."""
    if described is None:
        return []
    inner = described.get("normalizers", described.get("pretokenizers"))
    steps = [described] if inner is None else [step for part in inner for step in _steps(part)]
    return [step for step in steps if not _tidies(step)]


def _tidies(step: Mapping[str, Any]) -> bool:
    squeezes = step["type"] == "Replace" and step["pattern"] == {"Regex": " {2,}"}
    return squeezes or step["type"] in ("Strip", "WhitespaceSplit")
