"""Text with letters and marks, in every way to write it, and SentencePiece models of it, for tests."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import sentencepiece

WORDS = "hôm nay trời đẹp quá tôi thích đọc sách ở nhà với bạn và uống cà phê sữa đá buổi sáng mỗi ngày".split()
OTHERS = "naïve Ärger straße ﬁne Ａbc 北京 각하 x1 2026 don't".split()
LETTERS = [
    unicodedata.normalize("NFC", vowel + tone) for vowel in "aăâeêioôơuưy" for tone in "\u0300\u0301\u0303\u0309\u0323"
]
ODD = [
    "☃",
    "½",
    "ﬃ",
    "\u0301",
    "q\u0303",
    "Ａ\u0301",
    "ａ\u0302\u0301",
    "e\u0323\u0302",
    "İ",
    "\u00ad",
    "…",
    "a▁b",
    "\u0958",
]
SPACES = [" ", "  ", "   ", "\t", "\n", "\u00a0", "\u3000", "\u200b", ""]


def apart(text: str) -> str:
    """Letters and marks each by themselves."""
    return unicodedata.normalize("NFD", text)


def tone_apart(text: str) -> str:
    """The tone alone by itself, as conversions from Windows-1258 leave it."""
    cut = [unicodedata.normalize("NFD", letter) for letter in text]
    return "".join(unicodedata.normalize("NFC", part[:-1]) + part[-1] for part in cut)


def texts(count: int, seed: int = 0) -> list[str]:
    """Words, letters and odd characters in every form, with spaces of all kinds between them."""
    chance = random.Random(seed)

    def text() -> str:
        parts = []
        for _ in range(chance.randint(0, 7)):
            form = chance.choice([str, str, apart, tone_apart])
            parts += [form(chance.choice(WORDS + LETTERS + OTHERS + ODD)), chance.choice([" "] * 6 + SPACES)]
        return chance.choice(["", "", " ", "  "]) + "".join(parts)

    return [text() for _ in range(count)]


def save_spiece(folder: Path, between: str = " ", name: str = "spiece", **options: Any) -> Any:
    """A SentencePiece model in a folder of T5's kind; gives the package's processor."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    lines = [between.join(chance.choices(WORDS + LETTERS, k=6)) for _ in range(800)]
    settings = {
        "vocab_size": 300,
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "character_coverage": 1.0,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    } | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=str(folder / name), **settings)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))
