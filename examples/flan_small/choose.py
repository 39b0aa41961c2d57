"""Tasks whose answer is one of a few options: a model ranks them by log-probability, or writes one freely."""

from __future__ import annotations

import itertools
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

from microplane.config.knobs import GenerateKnobs
from microplane.data.batch_plan import pack
from microplane.data.reading.example import Message
from microplane.data.rendering.seq2seq import Seq2SeqRenderer
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError
from microplane.inference.generate import generate
from microplane.models.t5 import T5
from microplane.nn.cache import PairCache
from microplane.nn.rows import Rows


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
    """Rows as tokens: what is read, and every option with the end token."""

    def __init__(self, rows: Sequence[Choice], tokenizer: Tokenizer, longest: int):
        renderer = Seq2SeqRenderer(tokenizer)
        sources = [renderer.prompt([Message("user", row.inputs)]) for row in rows]
        self.sources = [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in sources]
        self.options = [[tokenizer.encode_target(option) for option in row.options] for row in rows]
        if len({len(options) for options in self.options}) != 1:
            raise DataError("rows with different numbers of options cannot be ranked side by side")


@torch.no_grad()
def rank(model: T5, rows: Sequence[Choice], data: OptionRows, budget: int = 8192) -> dict[str, float]:
    """Accuracy of the likeliest option, and the mean -log p of the right one, all tokens of its text together.

    A source is read once for all of its options.
    """
    model.eval()
    lengths = np.array([len(ids) for ids in data.sources], np.int32)
    scores = np.zeros((len(rows), len(data.options[0])))
    for indices in pack(np.argsort(-lengths, kind="stable").tolist(), lengths, budget):
        read, _ = model.start_generation([data.sources[index] for index in indices])
        assert isinstance(read, PairCache)
        for number in range(scores.shape[1]):
            cache = PairCache(model.config.num_decoder_layers, read.source_lengths)
            cache.memory = read.memory
            scores[indices, number] = log_probs(model, [data.options[index][number] for index in indices], cache)
    model.train()
    return ranked(rows, scores.ravel().tolist())


def log_probs(model: T5, targets: Sequence[list[int]], cache: PairCache) -> np.ndarray:
    """log p of whole targets behind what the cache has read."""
    given = Rows.of([[model.config.decoder_start, *ids[:-1]] for ids in targets])
    wanted = torch.tensor([token for ids in targets for token in ids])
    losses = F.cross_entropy(model.logits(model(given, cache)).float(), wanted, reduction="none")
    owner = torch.repeat_interleave(torch.arange(len(targets)), torch.tensor([len(ids) for ids in targets]))
    return -torch.zeros(len(targets)).index_add_(0, owner, losses).double().numpy()


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
    renderer = Seq2SeqRenderer(tokenizer)
    prompts = [renderer.prompt([Message("user", row.inputs)]) for row in rows]
    answers = generate(model, tokenizer, prompts, GenerateKnobs(max_new_tokens=12), renderer.stops)
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
    words = text.split("\nOptions:")[0].lower().split()
    yield from words
    yield from (f"{one} {two}" for one, two in itertools.pairwise(words))
