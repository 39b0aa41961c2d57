"""Tiny models and rows with labels, for tests of task heads through the whole job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from microplane.models.encoder import Encoder
from microplane.models.files.load import save_model
from tests.tiny import ENCODER_CONFIGS

WORDS = "red green blue one two three four film plot actor is was a the it not good bad fine poor".split()
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_wordpiece(folder: Path) -> int:
    """A WordPiece tokenizer of a few whole words and all letters; returns the number of its tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*SPECIALS, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(SPECIALS)
    backend.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast", **names}))
    return len(vocabulary)


def encoder_folder(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """A tiny encoder with a WordPiece tokenizer, in Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    size = save_wordpiece(folder)
    fields = ENCODER_CONFIGS[family] | {"vocab_size": size, **changes}
    save_model(Encoder.from_hf(fields).init_weights(0), folder)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reviews(count: int = 80) -> list[dict[str, Any]]:
    """Text and one of two labels that a word decides."""
    return [
        {
            "text": f"the {WORDS[n % 7]} {WORDS[7 + n % 3]} is {'good' if n % 2 else 'bad'} {n % 9}",
            "label": "positive" if n % 2 else "negative",
        }
        for n in range(count)
    ]


def multilabel(count: int = 80) -> list[dict[str, Any]]:
    colours = ["red", "green", "blue"]
    chosen = [[c for i, c in enumerate(colours) if n >> i & 1] for n in range(count)]
    return [{"text": f"a {' '.join(c)} film {n % 9}", "labels": c} for n, c in enumerate(chosen)]


def scores(count: int = 80) -> list[dict[str, Any]]:
    return [{"text": f"it is {' '.join(['good'] * (n % 4))} {n % 9}", "score": n % 4 / 2} for n in range(count)]


def tags(count: int = 80) -> list[dict[str, Any]]:
    made = []
    for n in range(count):
        words = ["the", WORDS[n % 3], WORDS[7 + n % 3], "xyz", str(n % 9)]
        made.append({"tokens": words, "tags": ["O", "COLOUR", "THING", "O", "NUMBER"]})
    return made


def pairs(count: int = 80) -> list[dict[str, Any]]:
    """The second text decides, and the first misleads."""
    made = []
    for n in range(count):
        one, other = ("good" if n >> bit & 1 else "bad" for bit in range(2))
        label = "yes" if other == "good" else "no"
        made.append({"premise": f"the film is {one} {n % 9}", "hypothesis": f"it was {other}", "label": label})
    return made
