"""What a model says of texts without writing any: labels with probabilities, numbers, and sentence embeddings.

B   texts       C   classes, or values of a regression       T   tokens of all texts       D   model width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from microplane.config.build import shown
from microplane.config.section import is_utf8
from microplane.data.batch_plan import packed_by_length
from microplane.data.tokenizers.tokenizer import Encoded, Tokenizer
from microplane.errors import ConfigError, DataError
from microplane.models.configs.head import POOLINGS, width_of
from microplane.models.contract import Model, in_eval_mode
from microplane.models.heads import DEFAULT_POOLING, embed, task_scores
from microplane.nn.rows import Rows
from microplane.objectives import HEAD_OBJECTIVES
from microplane.objectives.head import Prediction, Text

BUDGET = 8192  # tokens computed at once
MAX_LENGTH = 8192  # of a text, where the model itself knows no bound


@torch.no_grad()
def classify(model: Model, tokenizer: Tokenizer, texts: Sequence[Text], window: int | None = None) -> list[Prediction]:
    """What the model's task head says of each text.

    Args:
        window: tokens of a row, where a longer text was trained in windows (the knob `data.long_rows`).

    Raises:
        ConfigError: if it has none.
        DataError: for a text that is empty or not UTF-8.
    """
    if model.task_head is None:
        raise ConfigError(
            f"this {model.config.architecture} has no task head, so it has no labels to give: train one on rows with "
            "labels, as in microplane train MODEL DATA --set data.task=classification"
        )
    head = model.task_head.config
    if (length := _window_length(model, window)) is not None:
        return _by_windows(model, tokenizer, texts, length)
    objective, encoded = HEAD_OBJECTIVES[head.task], encode_all(model, tokenizer, texts, placed=head.per_token)
    found: dict[int, Prediction] = {}
    with in_eval_mode(model):
        for indices, rows in batches(encoded):
            own_texts, own_encoded = [texts[index] for index in indices], [encoded[index] for index in indices]
            predictions = objective.predictions(
                task_scores(model, rows.to(model.device)), own_texts, own_encoded, head.labels
            )
            found |= zip(indices, predictions, strict=True)
    return [found[index] for index in range(len(texts))]


def tokens_read(
    model: Model, tokenizer: Tokenizer, texts: Sequence[Text], labels: bool, window: int | None = None
) -> list[int]:
    """How many tokens are read of each text.

    Args:
        labels: by `classify`; else by `embed_texts`.
        window: as of `classify`.

    Raises:
        DataError: for a text that is empty or not UTF-8.
    """
    if not labels:
        return [len(one.ids) for one in as_embedded(model, tokenizer, texts)]
    if (length := _window_length(model, window)) is None:
        return [len(one.ids) for one in encode_all(model, tokenizer, texts)]
    return [sum(len(one.ids) for one in tokenizer.encode_windows(*as_pair(text), length)) for text in texts]


def _window_length(model: Model, window: int | None) -> int | None:
    """Of the windows that a text is read in; None where it is one row."""
    assert model.task_head is not None
    if window is None or model.task_head.config.per_token:
        return None
    return min(window, model.max_row_tokens or window)


def _by_windows(model: Model, tokenizer: Tokenizer, texts: Sequence[Text], length: int) -> list[Prediction]:
    """The mean of what is said of each window of a text."""
    assert model.task_head is not None
    head = model.task_head.config
    objective, windows = HEAD_OBJECTIVES[head.task], []
    encoded: list[Encoded] = []
    for text in texts:
        own = tokenizer.encode_windows(*as_pair(text), length)
        windows.append(list(range(len(encoded), len(encoded) + len(own))))
        encoded += own
    scores: dict[int, Tensor] = {}
    with in_eval_mode(model):
        for indices, rows in batches(encoded):
            scores |= zip(indices, task_scores(model, rows.to(model.device)).float().cpu(), strict=True)
    means = objective.over_windows(torch.stack([scores[row] for row in range(len(encoded))]), windows)
    first = [window[0] for window in windows]
    return objective.predictions(means[first], texts, [encoded[row] for row in first], head.labels)


@torch.no_grad()
def embed_texts(model: Model, tokenizer: Tokenizer, texts: Sequence[Text], pooling: str | None = None) -> Tensor:
    """Sentence embeddings of length 1: (B, D) float32. The product of two is their cosine.

    Args:
        pooling: mean, cls or last; by default as the model's folder says (1_Pooling of sentence-transformers), else the
            mean of an encoder's tokens, the last token of other models.

    Raises:
        ConfigError: if the folder asks for another pooling, and none is given.
    """
    chosen = pooling or model.sentence_pooling or DEFAULT_POOLING[model.KIND]
    if chosen not in POOLINGS:
        raise ConfigError(
            f"the model's 1_Pooling or modules.json asks for {chosen!r}, which is not supported: give --pooling "
            f"{' or '.join(POOLINGS)}, though the embeddings will be others than the model was trained for"
        )
    embeddings = torch.empty(len(texts), width_of(model.config, "", chosen))
    with in_eval_mode(model):
        for indices, rows in batches(as_embedded(model, tokenizer, texts)):
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
    """One text or two as two, of which the second may be empty. Raises: DataError, for none."""
    first, second = (text, "") if isinstance(text, str) else text
    if not first.strip() or not is_utf8(first + second):
        raise DataError(f"the text {shown(first)} is empty or holds bytes that are not UTF-8")
    return first, second


def batches(encoded: Sequence[Encoded]) -> Iterator[tuple[list[int], Rows]]:
    """Which texts are computed at once, the longest first."""
    for indices in packed_by_length(np.array([len(one.ids) for one in encoded]), BUDGET):
        types = [encoded[index].types for index in indices]
        yield indices, Rows.of([encoded[index].ids for index in indices], types=types if any(map(any, types)) else None)
