"""What a run trains for: answers in text, or labels of a task head. Decides what its rows look like."""

from __future__ import annotations

from typing import cast

from microplane.config.knobs import RunKnobs
from microplane.data.preparing.summary import DataSummary
from microplane.data.progress import Watcher
from microplane.data.row_kind import TEXT, Shape, Task
from microplane.errors import ConfigError
from microplane.models.configs.head import plain_of
from microplane.models.contract import Model
from microplane.models.families import context_of
from microplane.models.files.checkpoint import Checkpoint
from microplane.models.heads import add_head


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
