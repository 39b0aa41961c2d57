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
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.models.configs.head import (
    PER_TOKEN,
    POOLINGS,
    TASKS,
    HeadConfig,
    check_labels,
    form_for,
    shaped,
    told_pooling,
    width_of,
)
from microplane.models.contract import Model, hf_names
from microplane.models.external.encoder import TransformersEncoder
from microplane.models.external.transformers import TransformersModel
from microplane.models.task_head import TaskHead, pooled
from microplane.nn.rows import Pairs, Rows

DEFAULT_POOLING = {"encoder": "mean", "decoder": "last", "encoder-decoder": "last"}


def features(model: Model, rows: Rows, pooling: str) -> Tensor:
    """The hidden states that are pooled, (T, D)."""
    if model.KIND != "encoder-decoder":
        return model(rows)
    if pooling != "last":
        return model.encode(rows)
    starts = rows.last - rows.sizes + 1
    shifted = rows.ids.roll(1).index_fill(0, starts, model.config.decoder_start)
    return model(Pairs(rows, Rows(shifted, rows.positions, rows.lengths)))


def caches_pooled(model: Model) -> bool:
    """Whether all below the head computes the same in every step, and each row's vector is all that it needs of it."""
    head = model.task_head
    return head is not None and not head.config.per_token and head_trains_alone(model)


def head_trains_alone(model: Model) -> bool:
    """Whether nothing below a task head trains."""
    return model.task_head is not None and model.frozen == model.config.num_layers


def task_scores(model: Model, rows: Rows, cached_features: Tensor | None = None) -> Tensor:
    """What a model with a task head says of rows: (B, C), or (T, C) for tokens.

    Args:
        cached_features: what was computed of the rows before, up to the lowest block that trains: (T, D), or pooled
            (B, D).
    """
    head = model.task_head
    assert head is not None, "rows with labels need a task head"
    if isinstance(model, TransformersEncoder) and head.config.form is not None:
        return head.in_data_units(model.class_scores(rows))
    if cached_features is not None:
        if caches_pooled(model):
            return head.predict(cached_features)
        return head.scores(model.upper(cached_features, rows, model.frozen), rows)
    return head.scores(features(model, rows, head.config.pooling), rows)


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
    pooling = "mean" if task == PER_TOKEN else pooling or DEFAULT_POOLING[model.KIND]  # of no use to tokens
    config, width = model.config, width_of(model.config, task, pooling)
    if isinstance(model, TransformersEncoder) and (own := model.own_head(task)) and pools_as(own, task, pooling):
        return model.put_own_head(HeadConfig(task, tuple(labels), width, pooling, own[0]), seed)
    form = form_for(config.architecture, task, pooling)
    if form is None:
        share = getattr(config, "hidden_dropout", 0.0) if dropout is None else dropout
        head_config = HeadConfig(task, tuple(labels), width, pooling, dropout=share)
    else:
        fields = {**(model.source_config or {}), **config.to_hf()}
        head_config = shaped(form, task, tuple(labels), width, pooling, fields, dropout)
    spare = model.extra_weights | (model.task_head.hidden_layer() if model.task_head else {})
    head = TaskHead(head_config).init_weights(getattr(config, "init_std", 0.02), seed, spare)
    put_head(model, head)
    return head


def put_head(model: Model, head: TaskHead) -> None:
    """The head stands in for the one that writes words."""
    if isinstance(model, TransformersEncoder):
        model.take_off_own_head()
    elif model.KIND != "encoder":
        wanted = {"tied": True, "scaled": False, "logits_scaling": 1.0}  # the rest is as a head for words would have it
        changed = {name: value for name, value in wanted.items() if hasattr(model.config, name)}
        model.drop_head()
        model.config = replace(model.config, **changed)
    model.task_head = head.to(model.device)
    head.train(model.training)


def ensure_head(
    model: Model, task: str | None, labels: Sequence[str], pooling: str, seed: int, frozen: bool = False
) -> str | None:
    """Put a new head on a model that has none for these labels.

    Args:
        task: None where no head is asked for.
        pooling: cls, mean or last, or "auto".
        seed: of its weights.
        frozen: see `usual_pooling`.

    Returns:
        What is to be told of it; None where no head is asked for.

    Raises:
        ModelError: for labels of which no head can be made.
    """
    if task is None:
        return None
    names = tuple(labels) or ("value",)
    old = model.task_head.config if model.task_head is not None else None
    if old is not None and old.task == task and pooling in ("auto", old.pooling):
        one_number = task == "regression" and len(old.labels) == len(names)  # whatever it is called
        if old.labels == names or one_number:
            return f"head      the model's own: {old.task}, {len(names)} labels"
    head = add_head(model, task, names, usual_pooling(model, task, frozen) if pooling == "auto" else pooling, seed=seed)
    return f"head      new: {head.config.task}, {len(names)} labels, pooling {head.config.pooling}"


def usual_pooling(model: Model, task: str, frozen: bool) -> str:
    """How a new head pools where nobody says: as Hugging Face's class for this model does by its config.json, so that
    other tools open what was trained; on an encoder whose blocks stay as they are by the mean, which says more of them
    than one token.

    Args:
        frozen: whether all blocks stay as they are.
    """
    told = (model.sentence_pooling or "").split(",")[0]  # without further steps
    usual = told if told in POOLINGS else DEFAULT_POOLING[model.KIND]
    if model.KIND != "encoder" or frozen:
        return usual
    if isinstance(model, TransformersEncoder):
        own = model.own_head(task)
        return usual if own is None else own[1]
    named = told_pooling(model.config.architecture, model.source_config or {})
    first = [named] if named else []
    known = (pooling for pooling in (*first, usual, "cls") if form_for(model.config.architecture, task, pooling))
    return next(known, usual)


def pools_as(own: tuple[str, str], task: str, pooling: str) -> bool:
    """Whether a family's own class, as `TransformersEncoder.own_head` gives it, makes a row's vector in that way."""
    return task == PER_TOKEN or own[1] == pooling


def label_names_of(model: Model) -> tuple[str, ...]:
    """Of the classes that a model's head knows already."""
    return model.task_head.config.labels if model.task_head is not None else ()


def meta_copy(model: Model) -> Model:
    """A model of the same shapes, with its head, whose tensors are on the meta device: they have no memory."""
    with torch.device("meta"):
        copy = type(model)(model.config)
        if isinstance(copy, TransformersModel):
            copy.as_tried(cast(TransformersModel, model))
        if model.task_head is not None and copy.task_head is None:
            put_head(copy, TaskHead(model.task_head.config))
    return copy


def in_data_units(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by Hugging Face's names as files have them: the head's last layer in the unit of the labels."""
    head = model.task_head
    if head is None or head.unit == 1.0 or head.last is None:
        return dict(tensors)
    names, last = hf_names(model), {id(parameter) for parameter in head.last.parameters()}
    found = {names[f"task_head.{name}"] for name, parameter in head.named_parameters() if id(parameter) in last}
    return {name: tensor.detach() * head.unit if name in found else tensor for name, tensor in tensors.items()}


def head_metadata(model: Model) -> dict[str, Any]:
    """What an adapter says of the head that was trained with it, and of Hugging Face's class that has such a head."""
    if model.task_head is None:
        return {}
    config = model.task_head.config
    found: dict[str, Any] = {"head": {"task": config.task, "labels": list(config.labels), "pooling": config.pooling}}
    if config.form is None:
        return found
    told = {name: value for name, value in config.to_hf().items() if name == "classifier_pooling"}
    return found | {"opened_by": {"class": config.form, "num_labels": len(config.labels), **told}}


def head_from(model: Model, about: Mapping[str, Any]) -> None:
    """Put the head on a model that an adapter was trained with; its weights come with the adapter."""
    head = about.get("head")
    if head and head != head_metadata(model).get("head"):  # else the model has it already, perhaps of another form
        add_head(model, head["task"], tuple(head["labels"]), head["pooling"])
