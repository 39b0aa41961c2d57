"""What a run trains for: answers in text, or labels of a task head. Decides what its rows look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from microplane.config.knobs import RunKnobs
from microplane.data.preparing.summary import DataSummary
from microplane.data.progress import Watcher
from microplane.data.row_kind import TEXT, Shape, Task
from microplane.errors import ConfigError
from microplane.models.configs.head import plain_of
from microplane.models.contract import Model
from microplane.models.families import context_of
from microplane.models.files.load import Checkpoint
from microplane.models.heads import TaskHead, add_head, put_head


def row_shape(model: Model, task: str = "auto") -> Shape:
    """The rows that a model takes, by its family, the head that it has, and the knob `data.task`.

    Raises:
        ConfigError: for answers of a model that cannot write.
    """
    if task == "answers" and model.KIND == "encoder":
        raise ConfigError(
            f"data.task = answers: {model.config.architecture} reads and cannot write; leave data.task at auto for "
            "labels (text/label, premise/hypothesis/label, tokens/tags), or choose a decoder or an encoder-decoder"
        )
    if task not in ("auto", "answers"):
        return Shape("labels", task=cast(Task, task))
    if task == "auto" and model.task_head is not None:
        return Shape("labels", task=cast(Task, model.task_head.config.task))
    if model.KIND == "encoder":
        return Shape("labels")
    return Shape("pairs", start=model.config.decoder_start) if model.KIND == "encoder-decoder" else TEXT


def within_context(knobs: RunKnobs, checkpoint: Checkpoint, taken: int, watch: Watcher) -> RunKnobs:
    """Rows must fit the model's context, of which the method has taken some places; max_length is a bound, so it is
    lowered without asking, but said.

    Raises:
        ConfigError: if nothing is left for the rows.
    """
    context = context_of(plain_of(checkpoint.config))
    if context is None or knobs.data.max_length <= context - taken:
        return knobs
    if taken >= context:
        raise ConfigError(
            f"the method puts {taken} vectors before each row, and the context of this model is {context}: no room is "
            "left for the rows. Set method.length lower"
        )
    context -= taken
    beside = f" beside the {taken} vectors of the method" if taken else ""
    watch.say(f"data.max_length lowered from {knobs.data.max_length} to {context}, the context of this model{beside}")
    return knobs.model_copy(update={"data": knobs.data.model_copy(update={"max_length": context})})


def label_names_of(model: Model) -> tuple[str, ...]:
    """Of the classes that a model's head knows already."""
    return model.task_head.config.labels if model.task_head is not None else ()


def give_head(model: Model, summary: DataSummary, pooling: str, seed: int) -> str | None:
    """Put a new head on a model that has none for these labels; returns what is to be said of it."""
    if summary.task is None:
        return None
    labels = tuple(summary.labels) or ("value",)
    old = model.task_head.config if model.task_head is not None else None
    if old is not None and (old.task, old.labels) == (summary.task, labels) and pooling in ("auto", old.pooling):
        return f"head      the model's own: {old.task}, {len(labels)} labels"
    head = add_head(model, summary.task, labels, None if pooling == "auto" else pooling, seed=seed)
    return f"head      new: {head.config.task}, {len(labels)} labels, pooling {head.config.pooling}"


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
