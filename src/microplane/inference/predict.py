"""What a model says of texts without writing any: labels with probabilities, numbers, and sentence embeddings.

B   texts       C   classes, or values of a regression       T   tokens of all texts       D   model width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from microplane.config.build import shown
from microplane.config.knobs import is_utf8
from microplane.data.batch_plan import pack
from microplane.data.tokenizers.tokenizer import Encoded, Tokenizer
from microplane.errors import ConfigError, DataError
from microplane.models.contract import Model
from microplane.models.heads import DEFAULT_POOLING, embed, task_scores
from microplane.nn.rows import Rows

BUDGET = 8192  # tokens computed at once
MAX_LENGTH = 8192  # of a text, where the model itself knows no bound

Text = str | tuple[str, str]  # one text, or two that belong together


@dataclass(frozen=True)
class Said:
    """What a task head says of a text, or of a word in it."""

    label: str = ""  # of one class: the likeliest
    labels: tuple[str, ...] = ()  # of several classes: those with a probability above one half
    probabilities: dict[str, float] | None = None  # of each class
    values: tuple[float, ...] = ()  # of a regression
    words: tuple[tuple[str, Said], ...] = ()  # of a class for each word: the words in their order

    def __str__(self) -> str:
        if self.values:
            return ", ".join(f"{value:.4g}" for value in self.values)
        if self.words:
            return " ".join(f"{word}/{said.label}" for word, said in self.words)
        chances = sorted((self.probabilities or {}).items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {chance:.1%}" for name, chance in chances[:5])
        return f"{self.label or ', '.join(self.labels) or '(none)'}  ({told})"


def classify(model: Model, tokenizer: Tokenizer, texts: Sequence[Text]) -> list[Said]:
    """What the model's task head says of each text.

    Raises:
        ConfigError: if it has none.
        DataError: for a text that is empty or not UTF-8.
    """
    if model.task_head is None:
        raise ConfigError(
            f"this {model.config.architecture} has no task head, so it has no labels to give: train one on rows with "
            "labels, as in microplane train MODEL DATA --set data.task=classification"
        )
    read, said = encode_all(model, tokenizer, texts), dict[int, Said]()
    head = model.task_head.config
    for indices, rows in batches(read):
        scores = chances(in_eval(model, partial(task_scores, model, rows)), head.task)
        if head.task == "tokens":
            starts = np.cumsum([0, *rows.lengths])
            for place, index in enumerate(indices):
                own = scores[starts[place] : starts[place + 1]]
                said[index] = _words(texts[index], read[index], own, head.labels)
        else:
            said |= {index: _of_row(row, head.task, head.labels) for index, row in zip(indices, scores, strict=True)}
    return [said[index] for index in range(len(texts))]


def embed_texts(model: Model, tokenizer: Tokenizer, texts: Sequence[Text], pooling: str | None = None) -> Tensor:
    """Sentence embeddings of length 1: (B, D) float32. The product of two is their cosine.

    Args:
        pooling: mean, cls or last; by default the mean of an encoder's tokens, the last token of other models.
    """
    chosen = pooling or DEFAULT_POOLING[model.KIND]
    read = encode_all(model, tokenizer, texts)
    made = torch.empty(len(texts), model.config.hidden_size)
    for indices, rows in batches(read):
        made[indices] = in_eval(model, partial(embed, model, rows, chosen))
    return made


def encode_all(model: Model, tokenizer: Tokenizer, texts: Sequence[Text]) -> list[Encoded]:
    """Texts as they are in training; what is longer than the model's context loses its end."""
    read = []
    for text in texts:
        first, second = (text, "") if isinstance(text, str) else text
        if not first.strip() or not is_utf8(first + second):
            raise DataError(f"the text {shown(first)} is empty or holds bytes that are not UTF-8")
        read.append(tokenizer.encode_pair(first, second, model.max_row_tokens or MAX_LENGTH))
    return read


def batches(read: Sequence[Encoded]) -> Iterator[tuple[list[int], Rows]]:
    """Which texts are computed at once, the longest first."""
    lengths = np.array([len(one.ids) for one in read])
    for indices in pack(np.argsort(-lengths, kind="stable").tolist(), lengths, BUDGET):
        types = [read[index].types for index in indices]
        yield indices, Rows.of([read[index].ids for index in indices], types=types if any(map(any, types)) else None)


@torch.no_grad()
def in_eval(model: Model, compute: Callable[[], Tensor]) -> Tensor:
    """Without dropout and gradients."""
    was_training = model.training
    try:
        model.eval()
        return compute()
    finally:
        model.train(was_training)


def chances(scores: Tensor, task: str) -> Tensor:
    """Scores as probabilities; of a regression as they are."""
    if task == "regression":
        return scores
    return scores.sigmoid() if task == "multilabel" else scores.softmax(-1)


def _of_row(row: Tensor, task: str, labels: Sequence[str]) -> Said:
    if task == "regression":
        return Said(values=tuple(row.tolist()))
    probabilities = dict(zip(labels, row.tolist(), strict=True))
    if task == "multilabel":
        return Said(labels=tuple(n for n, chance in probabilities.items() if chance > 0.5), probabilities=probabilities)
    return Said(labels[int(row.argmax())], probabilities=probabilities)


def _words(text: Text, read: Encoded, scores: Tensor, labels: Sequence[str]) -> Said:
    """Words are what stands between white space; the first token that reaches into a word speaks for it."""
    whole = text if isinstance(text, str) else text[0]
    words, end = [], 0
    tokens = [(place, at) for at, place in enumerate(read.offsets) if place[0] < place[1]]
    for word in whole.split():
        start = whole.index(word, end)
        end = start + len(word)
        token = next((at for place, at in tokens if place[1] > start and place[0] < end), None)
        if token is not None:  # else it lies behind the greatest length
            words.append((word, _of_row(scores[token], "tokens", labels)))
    return Said(words=tuple(words))
