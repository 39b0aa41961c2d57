"""Heads that predict something else than words, on a model of any family: a class, several, a number, or a class for
each token. And sentence embeddings, which need no head.

    T   tokens of all rows, side by side       C   classes, or values of a regression
    B   rows                                   D   model width

A model carries its head as `task_head`. The head is no linear of a role: it trains whole, beside any method.
How a row becomes one vector is the pooling: `cls` takes its first token, `last` its last, `mean` the mean of all.
On an encoder-decoder, `last` is Hugging Face's way: the row goes through the encoder and, shifted, through the decoder,
whose last token is taken; `cls` and `mean` read the encoder alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.models.configs.head import TASKS, HeadConfig, check_labels, form_for, shaped
from microplane.models.contract import Model
from microplane.models.task_head import TaskHead, pooled
from microplane.nn.rows import Pairs, Rows

IGNORED = -100  # the label of a token that has none
DEFAULT_POOLING = {"encoder": "mean", "decoder": "last", "encoder-decoder": "last"}


def features(model: Model, rows: Rows, pooling: str) -> Tensor:
    """The hidden states that are pooled, (T, D)."""
    if model.KIND != "encoder-decoder":
        return model(rows)
    if pooling != "last":
        return model.encode(rows)
    starts = rows.last - torch.tensor(rows.lengths) + 1
    shifted = rows.ids.roll(1).index_fill(0, starts, model.config.decoder_start)
    return model(Pairs(rows, Rows(shifted, rows.positions, rows.lengths)))


def keeps_pooled(model: Model) -> bool:
    """Whether all below the head computes the same in every step, and each row's vector is all that it needs of it."""
    head = model.task_head
    return head is not None and head.config.task != "tokens" and model.frozen == model.config.num_layers


def task_scores(model: Model, rows: Rows, kept: Tensor | None = None) -> Tensor:
    """What a model with a task head says of rows: (B, C), or (T, C) for tokens.

    Args:
        kept: what was computed of the rows before, up to the lowest block that trains: (T, D), or pooled (B, D).
    """
    head = model.task_head
    assert head is not None, "the model has a task head"
    if kept is not None:
        return head.predict(kept) if keeps_pooled(model) else head.scores(model.upper(kept, rows, model.frozen), rows)
    return head.scores(features(model, rows, head.config.pooling), rows)


def head_loss(scores: Tensor, labels: Tensor, task: str) -> Tensor:
    """The loss, summed over rows (or over the tokens that have a label), as transformers' problem_type defines it; its
    mean there is this sum, divided by the number of rows (or of those tokens).

    Args:
        scores: (B, C), of tokens (T, C).
        labels: numbers of classes (B,); for `multilabel` 0 or 1 (B, C); for `regression` (B, C), or (B,) where C is 1;
            for `tokens` (T,) with -100 where there is no label.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if task in ("classification", "tokens"):
        return F.cross_entropy(wide, labels.long(), ignore_index=IGNORED, reduction="sum")
    targets = labels.to(wide.dtype).view_as(wide)
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(wide, targets, reduction="sum") / wide.shape[1]
    assert task == "regression", task
    return F.mse_loss(wide, targets, reduction="sum") / wide.shape[1]


def embed(model: Model, rows: Rows, pooling: str = "mean") -> Tensor:
    """Sentence embeddings of length 1, whose product is their cosine: (B, D) float32."""
    return F.normalize(pooled(features(model, rows, pooling), rows, pooling).float(), dim=-1)


def add_head(
    model: Model,
    task: str,
    labels: Sequence[str],
    pooling: str | None = None,
    dropout: float | None = None,
    seed: int = 0,
) -> TaskHead:
    """Put a new head on a model, in place of the one that it has: of the form that Hugging Face has for this model and
    pooling, else dropout and a linear layer.

    Args:
        labels: names of the classes, or of the values of a regression.
        pooling: cls, mean or last; by default the mean of an encoder's tokens, the last token of other models.
        dropout: what the model's own config says, by default.

    Raises:
        ModelError: for labels of which no head can be made.
    """
    assert task in TASKS, task
    check_labels(task, labels)
    pooling = "mean" if task == "tokens" else pooling or DEFAULT_POOLING[model.KIND]  # of no use to tokens
    config, width = model.config, model.config.hidden_size
    form = form_for(config.architecture, task, pooling)
    if form is None:
        share = getattr(config, "hidden_dropout", 0.0) if dropout is None else dropout
        made = HeadConfig(task, tuple(labels), width, pooling, dropout=share)
    else:
        fields = {**(model.source_config or {}), **config.to_hf()}
        made = shaped(form, task, tuple(labels), width, pooling, fields, dropout)
    spare = model.extra_weights | (model.task_head.hidden_layer() if model.task_head else {})
    head = TaskHead(made).init_weights(getattr(config, "init_std", 0.02), seed, spare)
    put_head(model, head)
    return head


def put_head(model: Model, head: TaskHead) -> None:
    """The head stands in for the one that writes words."""
    if model.KIND != "encoder":
        wanted = {"tied": True, "scaled": False}  # as a head for words would have it
        changed = {name: value for name, value in wanted.items() if hasattr(model.config, name)}
        model.head, model.config = None, replace(model.config, **changed)
    model.task_head = head
    head.train(model.training)


def predicted(scores: Tensor, config: HeadConfig) -> list[str] | list[list[str]] | list[list[float]]:
    """In words: the name of the likeliest class of each row (or token); the names of those with a probability above
    one half; or the values."""
    if config.task == "regression":
        return scores.tolist()
    if config.task == "multilabel":
        chosen = (scores > 0).tolist()
        return [[name for name, yes in zip(config.labels, row, strict=True) if yes] for row in chosen]
    return [config.labels[number] for number in scores.argmax(-1).tolist()]


def label_names_of(model: Model) -> tuple[str, ...]:
    """Of the classes that a model's head knows already."""
    return model.task_head.config.labels if model.task_head is not None else ()


def twin_of(model: Model) -> Model:
    """A model of the same shapes, with its head, made on the device of the context."""
    twin = type(model)(model.config)
    if model.task_head is not None:
        put_head(twin, TaskHead(model.task_head.config))
    return twin


def about_head(model: Model) -> dict[str, Any]:
    """What an adapter says of the head that was trained with it."""
    if model.task_head is None:
        return {}
    config = model.task_head.config
    return {"head": {"task": config.task, "labels": list(config.labels), "pooling": config.pooling}}


def head_from(model: Model, about: Mapping[str, Any]) -> None:
    """Put the head on a model that an adapter was trained with; its weights come with the adapter."""
    told = about.get("head")
    if told and told != about_head(model).get("head"):  # else the model has it already, perhaps of another form
        add_head(model, told["task"], tuple(told["labels"]), told["pooling"])
