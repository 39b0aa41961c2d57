"""Small sources and mixture files for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_sources(folder: Path) -> None:
    """Five files. Each row holds a text of its own, `<name number>`, by which it is found again."""
    write(folder / "reviews.jsonl", [{"review": f"<review {n}>", "stars": n % 2} for n in range(300)])
    write(folder / "news.jsonl", [{"text": f"<news {n}>", "label": "abc"[n % 3]} for n in range(60)])
    write(
        folder / "quiz.jsonl",
        [{"question": f"<quiz {n}>", "answer": f"a{n}", "all": [f"a{n}", "b"]} for n in range(80)],
    )
    write(folder / "sums.jsonl", [{"question": f"<sum {n}>", "reasoning": "So.", "answer": n} for n in range(100)])
    write(folder / "talk.jsonl", [{"turns": [f"<talk {n}>", "hi"], "reply": f"r{n}"} for n in range(50)])


REVIEWS: dict[str, Any] = {
    "name": "reviews",
    "file": "reviews.jsonl",
    "family": "sentiment",
    "fields": {"text": "review", "label": "stars"},
    "options": {0: "bad", 1: "good"},
}
NEWS: dict[str, Any] = {"name": "news", "file": "news.jsonl", "family": "topic", "options": ["a", "b", "c"]}
QUIZ: dict[str, Any] = {"name": "quiz", "file": "quiz.jsonl", "family": "qa_closed", "options_column": "all"}
SUMS: dict[str, Any] = {"name": "sums", "file": "sums.jsonl", "family": "reasoning"}
TALK: dict[str, Any] = {
    "name": "talk",
    "file": "talk.jsonl",
    "family": "dialogue",
    "fields": {"dialogue": "turns", "response": "reply"},
}
FLAN: dict[str, Any] = {
    "base": "flan2022",
    "submixtures": {
        "flan2021": {"cap": 100, "sources": [REVIEWS, NEWS]},
        "t0": {"sources": [QUIZ]},
        "niv2": {"sources": [NEWS | {"name": "more news"}]},
        "cot": {"sources": [SUMS]},
        "dialog": {"sources": [TALK]},
    },
}


def one(source: dict[str, Any] = REVIEWS, submixture: dict[str, Any] | None = None, **knobs: Any) -> dict[str, Any]:
    """A mixture of one source."""
    return {"submixtures": {"all": {**(submixture or {}), "sources": [source]}}, **knobs}


def write_mixture(folder: Path, values: Any, name: str = "mixture.yaml") -> Path:
    path = folder / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path
