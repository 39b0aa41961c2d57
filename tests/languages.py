"""Tiny folders of multilingual translation models, with the tokenizers of their own classes."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import M2M100Tokenizer, MBart50Tokenizer, MBartTokenizer, NllbTokenizer

from microplane.models.families import family_of
from microplane.models.files.load import save_model
from tests.parity.test_marian_tokenizer import ENGLISH, FRENCH
from tests.tiny import PAIR_CONFIGS

NAMES = ["nllb", "m2m_100", "mbart", "mbart50"]
CODES = {
    "nllb": ("eng_Latn", "fra_Latn", "vie_Latn"),
    "m2m_100": ("en", "fr", "vi"),
    "mbart": ("en_XX", "fr_XX", "vi_VN"),
    "mbart50": ("en_XX", "fr_XX", "vi_VN"),
}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LETTERS = ["▁", *string.ascii_lowercase, *string.digits]


def save_tokenizer(folder: Path, name: str) -> Any:
    """transformers' own tokenizer, saved; with no language chosen."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "m2m_100":
        return _m2m100(folder)
    if name == "nllb":
        vocabulary = {text: number for number, text in enumerate(SPECIAL + LETTERS)}
        extra = [*CODES["nllb"], "eng_Grek"]
        tokenizer: Any = NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=extra)
    else:
        kind = MBartTokenizer if name == "mbart" else MBart50Tokenizer
        texts = [*SPECIAL, *LETTERS, "en_XX", "fr_XX", "<mask>"]
        tokenizer = kind(vocab=[(text, 0.0 if text in SPECIAL else -1.0) for text in texts])
    tokenizer.save_pretrained(folder)
    return tokenizer


def _m2m100(folder: Path) -> Any:
    text = folder / "text.txt"
    text.write_text("\n".join([*ENGLISH, *FRENCH, *LETTERS[1:]]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=180, model_type="bpe",
        minloglevel=2, character_coverage=1.0,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    pieces = [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
    table = {text: number for number, text in enumerate([*SPECIAL, *reversed(pieces)])}
    (folder / "vocab.json").write_text(json.dumps(table))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def translation_folder(folder: Path, name: str) -> Path:
    """A tiny model with it, in Hugging Face layout."""
    tokenizer = save_tokenizer(folder, name)
    fields = PAIR_CONFIGS["mbart" if "mbart" in name else "m2m_100"]
    fields = fields | {
        "vocab_size": 300 if name == "m2m_100" else len(tokenizer) + 8,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    save_model(family_of(fields).from_hf(fields).init_weights(0), folder)
    return folder
