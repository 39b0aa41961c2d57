"""What a model says of texts without writing any: labels with probabilities, numbers, and sentence embeddings.

B   texts       C   classes, or values of a regression       T   tokens of all texts       D   model width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from microplane.config.build import shown
from microplane.config.section import is_utf8
from microplane.data.batch_plan import packed_by_length
from microplane.data.tokenizers.tokenizer import Encoded, Tokenizer
from microplane.errors import ConfigError, DataError, notice
from microplane.models.configs.head import POOLINGS, width_of
from microplane.models.contract import Model, in_eval_mode
from microplane.models.heads import DEFAULT_POOLING, embed, task_scores
from microplane.nn.rows import Rows
from microplane.objectives import HEAD_OBJECTIVES
from microplane.objectives.head import Prediction, Text

BUDGET = 8192  # tokens computed at once
MAX_LENGTH = 8192  # of a text, where the model itself knows no bound


class Reading(NamedTuple):
    """A text, and the rows of tokens that are read of it: one, or the windows of a longer text."""

    text: Text
    rows: list[Encoded]
    windowed: bool = False  # whether a longer text would be more rows

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)


def classify(model: Model, tokenizer: Tokenizer, texts: Sequence[Text], window: int | None = None) -> list[Prediction]:
    """What the model's task head says of each text.

    Args:
        window: tokens of a row, where a longer text was trained in windows (the knob `data.long_rows`).

    Raises:
        ConfigError: if it has none.
        DataError: for a text that is empty or not UTF-8.
    """
    readings = read_to_label(model, tokenizer, texts, window)
    tell_cut(readings, model.task_head is not None and model.task_head.config.per_token)
    return labels_of(model, readings)


def read_to_label(
    model: Model, tokenizer: Tokenizer, texts: Sequence[Text], window: int | None = None
) -> list[Reading]:
    """Texts as `classify` reads them. Raises: as `classify`."""
    if model.task_head is None:
        raise ConfigError(
            f"this {model.config.architecture} has no task head, so it has no labels to give: train one on rows with "
            "labels, as in microplane train MODEL DATA --set data.task=classification"
        )
    per_token = model.task_head.config.per_token
    if window is None or per_token:
        encoded = encode_all(model, tokenizer, texts, placed=per_token)
        return [Reading(text, [one]) for text, one in zip(texts, encoded, strict=True)]
    length = min(window, model.max_row_tokens or window)
    return [Reading(text, tokenizer.encode_windows(*as_pair(text), length), True) for text in texts]


@torch.no_grad()
def labels_of(model: Model, readings: Sequence[Reading]) -> list[Prediction]:
    """What the model's task head says of texts that `read_to_label` has read; of one in windows, the mean of what is
    said of each."""
    assert model.task_head is not None
    head = model.task_head.config
    objective, encoded = HEAD_OBJECTIVES[head.task], [row for one in readings for row in one.rows]
    texts, found = [one.text for one in readings], dict[int, Prediction]()
    windowed, scores = any(one.windowed for one in readings), dict[int, Tensor]()
    with in_eval_mode(model):
        for indices, rows in batches(encoded):
            said = task_scores(model, rows.to(model.device))
            if windowed:
                scores |= zip(indices, said.float().cpu(), strict=True)
                continue
            own_texts, own_encoded = [texts[index] for index in indices], [encoded[index] for index in indices]
            predictions = objective.predictions(said, own_texts, own_encoded, head.labels)
            found |= zip(indices, predictions, strict=True)
    if not windowed:
        return [found[index] for index in range(len(texts))]
    ends = list(accumulate(len(one.rows) for one in readings))
    windows = [list(range(end - len(one.rows), end)) for one, end in zip(readings, ends, strict=True)]
    means = objective.over_windows(torch.stack([scores[row] for row in range(len(encoded))]), windows)
    first = [window[0] for window in windows]
    return objective.predictions(means[first], texts, [encoded[row] for row in first], head.labels)


def embed_texts(model: Model, tokenizer: Tokenizer, texts: Sequence[Text], pooling: str | None = None) -> Tensor:
    """Sentence embeddings of length 1: (B, D) float32. The product of two is their cosine.

    Args:
        pooling: mean, cls or last; by default as the model's folder says (1_Pooling of sentence-transformers), else the
            mean of an encoder's tokens, the last token of other models.

    Raises:
        ConfigError: if the folder asks for another pooling, and none is given.
        DataError: for a text that is empty or not UTF-8.
    """
    readings = read_to_embed(model, tokenizer, texts)
    tell_cut(readings)
    return embeddings_of(model, readings, pooling)


def tell_cut(readings: Sequence[Reading], per_token: bool = False) -> None:
    """Say of which texts the end is not read."""
    cut = [number for number, one in enumerate(readings) if any(row.cut for row in one.rows)]
    if not cut:
        return
    several, most = len(readings) > 1, max(len(row.ids) for row in readings[cut[0]].rows)
    verb = "is" if len(cut) == 1 else "are"
    which = f"{len(cut):,} of {len(readings):,} texts {verb}" if several else "the text is"
    first = f" (text {cut[0] + 1} first)" if several else ""
    lost = ", and the words there get no label" if per_token else ""
    notice(f"{which} longer than the {most:,} tokens that are read of one: the end is lost{lost}{first}")


def read_to_embed(model: Model, tokenizer: Tokenizer, texts: Sequence[Text]) -> list[Reading]:
    """Texts as `embed_texts` reads them. Raises: DataError, as it."""
    encoded = as_embedded(model, tokenizer, texts)
    return [Reading(text, [one]) for text, one in zip(texts, encoded, strict=True)]


@torch.no_grad()
def embeddings_of(model: Model, readings: Sequence[Reading], pooling: str | None = None) -> Tensor:
    """Of texts that `read_to_embed` has read. Raises: ConfigError, as `embed_texts`."""
    chosen = pooling or model.sentence_pooling or DEFAULT_POOLING[model.KIND]
    if chosen not in POOLINGS:
        raise ConfigError(
            f"the model's 1_Pooling or modules.json asks for {chosen!r}, which is not supported: give --pooling "
            f"{' or '.join(POOLINGS)}, though the embeddings will be others than the model was trained for"
        )
    embeddings = torch.empty(len(readings), width_of(model.config, "", chosen))
    with in_eval_mode(model):
        for indices, rows in batches([one.rows[0] for one in readings]):
            embeddings[indices] = embed(model, rows.to(model.device), chosen).cpu()
    return embeddings


def as_embedded(model: Model, tokenizer: Tokenizer, texts: Sequence[Text]) -> list[Encoded]:
    """Sentences as `embed_texts` reads them."""
    return encode_all(model, tokenizer, [_sentence(model, text) for text in texts], longest=model.sentence_tokens)


def _sentence(model: Model, text: Text) -> Text:
    """A sentence as the model's folder has it read."""
    if not isinstance(text, str):
        return text
    whole = model.sentence_prompt + text
    return whole.lower() if model.sentence_lower else whole


def encode_all(
    model: Model, tokenizer: Tokenizer, texts: Sequence[Text], placed: bool = False, longest: int | None = None
) -> list[Encoded]:
    """Texts as they are in training; what is longer than the model's context loses its end.

    Args:
        placed: whether the places of the tokens are asked for.
        longest: tokens of a text that are read, where that is less.
    """
    encoded, most = [], model.max_row_tokens or MAX_LENGTH
    most = min(most, longest or most)
    for text in texts:
        encoded.append(tokenizer.encode_pair(*as_pair(text), most, placed))
    return encoded


def as_pair(text: Text) -> tuple[str, str]:
    """One text or two as two, of which the second is empty where only one has anything in it. Raises: DataError, for
    none."""
    first, second = (text, "") if isinstance(text, str) else text
    if not first.strip() and second.strip():
        first, second = second, ""
    if not first.strip() or not is_utf8(first + second):
        raise DataError(f"the text {shown(first)} is empty or holds bytes that are not UTF-8")
    return first, second


def batches(encoded: Sequence[Encoded]) -> Iterator[tuple[list[int], Rows]]:
    """Which texts are computed at once, the longest first."""
    for indices in packed_by_length(np.array([len(one.ids) for one in encoded]), BUDGET):
        types = [encoded[index].types for index in indices]
        yield indices, Rows.of([encoded[index].ids for index in indices], types=types if any(map(any, types)) else None)
