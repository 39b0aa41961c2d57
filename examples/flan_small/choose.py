"""Tasks whose answer is one of a few options: a model ranks them by log-probability, or writes one freely."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from microplane.config import GenerateKnobs
from microplane.data.batches import pack
from microplane.data.pairs import PairLayout
from microplane.data.formats import Message
from microplane.data.shape import Shape
from microplane.data.tokenizer import Tokenizer
from microplane.generate import generate
from microplane.training.objective import make_batch


@dataclass(frozen=True)
class Choice:
    """A row: what is read, what may be answered, and the number of the right answer."""

    inputs: str
    options: tuple[str, ...]
    right: int


def read_choices(path: Path, most: int | None = None) -> list[Choice]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:most]]
    return [Choice(row["inputs"], tuple(row["options"]), row["options"].index(row["targets"])) for row in rows]


class OptionRows:
    """Every option of every row as a pair, in the form that `make_batch` reads."""

    def __init__(self, rows: Sequence[Choice], tokenizer: Tokenizer, longest: int, start: int = 0):
        layout = PairLayout(tokenizer)
        self.shape = Shape("pairs", start)
        self.owner: list[int] = []
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        for number, row in enumerate(rows):
            source = layout.prompt([Message("user", row.inputs)])
            source = source if len(source) <= longest else [*source[: longest - 1], source[-1]]
            for option in row.options:
                target = tokenizer.encode_target(option)
                ids = np.array([*source, *target], np.int32)
                self.pairs.append((ids, np.arange(len(ids)) >= len(source)))
                self.owner.append(number)
        self.lengths = np.array([len(ids) for ids, _ in self.pairs], np.int32)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[row]


@torch.no_grad()
def rank(model: Any, rows: Sequence[Choice], data: OptionRows, budget: int = 8192) -> dict[str, float]:
    """Accuracy of the likeliest option, and the mean -log p of the right one, all tokens of its text together."""
    model.eval()
    order = np.argsort(-data.lengths, kind="stable").tolist()
    scores = np.zeros(len(data))
    for indices in pack(order, data.lengths, budget):
        batch: Any = make_batch(data, indices)  # type: ignore[arg-type]
        losses = F.cross_entropy(model.logits(model(batch.rows)).float(), batch.targets, reduction="none")
        counts = torch.tensor([int(data.pairs[index][1].sum()) for index in indices])
        where = torch.repeat_interleave(torch.arange(len(indices)), counts)
        scores[indices] = -torch.zeros(len(indices)).index_add_(0, where, losses).double().numpy()
    model.train()
    return ranked(rows, scores.tolist())


def ranked(rows: Sequence[Choice], scores: Sequence[float]) -> dict[str, float]:
    """From one log-probability for each option of each row, in their order."""
    right, loss, at = 0, 0.0, 0
    for row in rows:
        own = scores[at : at + len(row.options)]
        right += max(range(len(own)), key=own.__getitem__) == row.right
        loss -= own[row.right]
        at += len(row.options)
    return {"accuracy": right / len(rows), "loss": loss / len(rows)}


def write_freely(model: Any, tokenizer: Tokenizer, rows: Sequence[Choice]) -> dict[str, Any]:
    """Greedy answers: how many are one of the options, and how many the right one."""
    model.eval()
    layout = PairLayout(tokenizer)
    prompts = [layout.prompt([Message("user", row.inputs)]) for row in rows]
    answers = generate(model, tokenizer, prompts, GenerateKnobs(max_new_tokens=12), layout.stops)
    texts = [answer.text.strip() for answer in answers]
    return {
        "exact_match": sum(text == row.options[row.right] for text, row in zip(texts, rows, strict=True)) / len(rows),
        "an_option": sum(text in row.options for text, row in zip(texts, rows, strict=True)) / len(rows),
        "samples": texts[:5],
    }


def counting_baseline(train: Sequence[Choice], test: Sequence[Choice]) -> dict[str, float]:
    """What counting does: the commonest answer, and naive Bayes over words and pairs of words."""
    counts: dict[str, Counter[str]] = {}
    answers = Counter(row.options[row.right] for row in train)
    for row in train:
        counts.setdefault(row.options[row.right], Counter()).update(_features(row.inputs))
    size = len(set().union(*counts.values()))
    totals = {answer: sum(own.values()) for answer, own in counts.items()}

    def score(answer: str, features: Sequence[str]) -> float:
        if answer not in counts:
            return -math.inf
        own, total = counts[answer], totals[answer] + size
        return math.log(answers[answer]) + sum(math.log((own[word] + 1) / total) for word in features)

    common = right = 0
    for row in test:
        features = list(_features(row.inputs))
        common += max(row.options, key=lambda option: answers[option]) == row.options[row.right]
        right += max(row.options, key=lambda option: score(option, features)) == row.options[row.right]
    return {"commonest": common / len(test), "naive_bayes": right / len(test)}


def _features(text: str) -> Iterable[str]:
    words = text.lower().split()
    yield from words
    yield from (f"{one} {two}" for one, two in zip(words, words[1:], strict=False))
