"""Tokenizers of encoders that come as a plain vocabulary: BERT's vocab.txt, RoBERTa's vocab.json and merges.txt.

WordPiece (arXiv 1609.08144) behind BERT's splitting at spaces and punctuation; byte-level BPE as GPT-2 has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from microplane.data.tokenizers.folder import TokenizerFolder
from microplane.errors import ModelError

BERT = {name: f"[{name[:-6].upper()}]" for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")}
ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


def build_from_files(folder: TokenizerFolder) -> tuple[Backend, dict[str, str]] | None:
    """The tokenizer of a folder, and the names of its special tokens; None if it has no such files, or they are of
    another model, whose way to split a text they do not tell.

    Raises:
        ModelError: if the files are damaged, or lack a special token.
    """
    kind, config = folder.model_config.get("model_type"), folder.config
    if kind == "bert" and folder.has("vocab.txt"):
        return _word_piece(folder.path / "vocab.txt", BERT | _told(config, BERT), config)
    if kind in ("roberta", "bart") and folder.has("vocab.json", "merges.txt"):
        return _byte_pairs(folder.path / "vocab.json", ROBERTA | _told(config, ROBERTA), config)
    return None


def _told(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """A special token may stand as text or with its flags."""
    told = {name: value.get("content") if isinstance(value := config.get(name), dict) else value for name in names}
    return {name: text for name, text in told.items() if isinstance(text, str)}


Built = tuple[Backend, dict[str, str]]


def _word_piece(file: Path, named: dict[str, str], config: Mapping[str, Any]) -> Built:
    try:
        backend = Backend(models.WordPiece.from_file(str(file), unk_token=named["unk_token"]))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{file} is damaged or not the vocabulary of a BERT ({error})") from None
    ids = _ids(backend, named, file)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    begin, end = named["cls_token"], named["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0 {end}:0",
        pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(begin, ids["cls_token"]), (end, ids["sep_token"])],
    )
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in named.values()])
    return backend, named


def _byte_pairs(file: Path, named: dict[str, str], config: Mapping[str, Any]) -> Built:
    try:
        backend = Backend(models.BPE.from_file(str(file), str(file.with_name("merges.txt"))))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{file} and merges.txt are damaged or not the vocabulary of a RoBERTa ({error})") from None
    ids = _ids(backend, named, file)
    space = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        sep=(named["sep_token"], ids["sep_token"]),
        cls_token=(named["cls_token"], ids["cls_token"]),
        add_prefix_space=space,
    )
    mask = named["mask_token"]  # takes the space before it with it
    special = [
        AddedToken(text, lstrip=text == mask, normalized=False, special=True) for text in dict.fromkeys(named.values())
    ]
    backend.add_special_tokens(special)
    return backend, named


def _ids(backend: Backend, named: Mapping[str, str], file: Path) -> dict[str, int]:
    ids = {name: backend.token_to_id(text) for name, text in named.items()}
    if lacking := [named[name] for name, token in ids.items() if token is None]:
        raise ModelError(f"{file} lacks the special tokens {', '.join(dict.fromkeys(lacking))}")
    return {name: token for name, token in ids.items() if token is not None}
