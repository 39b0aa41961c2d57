"""What is compared of models that write nothing: scores of classes, numbers or tags, and embeddings of sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from microplane.errors import AdapterError
from microplane.evaluation.probe import size_of
from microplane.exports.compare import Comparison
from microplane.exports.source import Source
from microplane.inference.predict import embed_texts, encode_all
from microplane.models.contract import in_eval_mode
from microplane.models.heads import DEFAULT_POOLING, task_scores
from microplane.nn.rows import Rows

AT_ONCE = 4  # texts of different lengths in one batch of the engine
CLOSE = 1e-3  # beyond which what was written is not the model
Said = Callable[[Sequence[str]], Sequence[Tensor]]


def pooling_of(source: Source) -> str:
    model = source.pipeline.model
    return model.sentence_pooling or DEFAULT_POOLING[model.KIND]


@torch.no_grad()
def ours(source: Source, texts: Sequence[str]) -> list[Tensor]:
    """Scores (C,) of each text, of tags (T, C); embeddings (D,) of length 1 where there is no head."""
    model = source.pipeline.model
    if model.task_head is None:
        return list(embed_texts(model, source.tokenizer, texts, pooling_of(source)))
    with in_eval_mode(model):
        scores = [task_scores(model, Rows.of([one.ids])) for one in encode_all(model, source.tokenizer, texts)]
    return scores if model.task_head.config.per_token else [one[0] for one in scores]


def compare_vectors(source: Source, name: str, said: Said) -> Comparison:
    """Ours and an engine's, in batches of texts of different lengths.

    Raises:
        AdapterError: if they are not the same.
    """
    texts = [text for text in source.texts if text.strip()]
    theirs = [one for start in range(0, len(texts), AT_ONCE) for one in said(texts[start : start + AT_ONCE])]
    own = ours(source, texts)
    pairs = zip(own, theirs, strict=True)
    furthest = max(float((mine.float() - other.float()).abs().max()) for mine, other in pairs)
    measure = "embedding" if source.pipeline.model.task_head is None else "score"
    if not furthest <= CLOSE * size_of(source.pipeline.objective, own):
        raise AdapterError(f"{name} computes something else: {measure}s differ by {furthest:.2e}; nothing was kept")
    return Comparison(name, 0, (), len(texts), furthest, (), measure)
