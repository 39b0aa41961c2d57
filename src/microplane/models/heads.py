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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from microplane.models.configs.head import FORMS, OWN, TASKS, HeadConfig, check_labels, form_for, shaped
from microplane.models.contract import Model
from microplane.nn.layers import ACTIVATIONS, LayerNorm, Linear
from microplane.nn.ops.dropout import dropout
from microplane.nn.rows import Pairs, Rows

IGNORED = -100  # the label of a token that has none
DEFAULT_POOLING = {"encoder": "mean", "decoder": "last", "encoder-decoder": "last"}


class TaskHead(nn.Module):
    """dropout and a linear layer; where the form has it, a hidden layer before them."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        form, D = config.form and FORMS[config.form], config.width
        self.dense = Linear(D, D, bias=config.dense_bias) if form and form.dense else None
        self.norm = LayerNorm(D, eps=config.norm_eps, bias=config.norm_bias) if form and form.norm else None
        self.out = Linear(D, len(config.labels), bias=form.out_bias if form else True)
        self.dropout_first = bool(form and form.dropout_first)

    @property
    def reads_decoder(self) -> bool:
        """On an encoder-decoder: whether it looks at the decoder's states, and not at the encoder's alone."""
        return self.config.pooling == "last" and self.config.task != "tokens"

    def pool(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(T, D) -> (B, D)."""
        return pooled(hidden, rows, self.config.pooling)

    def scores(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(T, D) -> (B, C), or (T, C) for tokens; at least float32."""
        return self.predict(hidden if self.config.task == "tokens" else self.pool(hidden, rows))

    def predict(self, x: Tensor) -> Tensor:
        """Of vectors that are pooled already, or of single tokens: (B, D) -> (B, C); at least float32."""
        p = self.config.dropout
        if self.dense is not None:
            x = dropout(x, p, self.training) if self.dropout_first else x
            x = activation(self.config.activation)(self.dense(x))
            x = x if self.norm is None else self.norm(x)
        x = dropout(x, p, self.training)
        return self.out(x.to(torch.promote_types(x.dtype, torch.float32)))

    def hf_names(self, beneath: Mapping[str, str]) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, of the model beneath, whose plain names are given, and of this head."""
        form = FORMS[self.config.form] if self.config.form else None
        names = {ours: (form.prefix if form else "") + theirs for ours, theirs in beneath.items()}
        own: dict[str, str | None] = {"out": f"{OWN}.out"}
        called = {"out": form.out, "dense": form.dense, "norm": form.norm} if form else own
        for name, _ in self.named_parameters():
            module, kind = name.split(".")
            names[f"{OWN}.{name}"] = f"{called[module]}.{kind}"
        return names

    @torch.no_grad()
    def init_weights(self, std: float = 0.02, seed: int = 0, spare: Mapping[str, Tensor] | None = None) -> TaskHead:
        """New weights, normal with that deviation, biases 0; the hidden layer from `spare`, where pre-training (BERT's
        pooler, ModernBERT's) or the head before this one has left one that fits."""
        generator = torch.Generator().manual_seed(seed)
        for linear in (self.dense, self.out):
            if linear is not None:
                linear.weight.normal_(0.0, std, generator=generator)
                if linear.bias is not None:
                    linear.bias.zero_()
        if self.norm is not None:
            self.norm.reset_parameters()
        for name, parameter in self.hidden_layer().items():
            if spare and name in spare and spare[name].shape == parameter.shape:
                parameter.copy_(spare[name])
        return self

    def hidden_layer(self) -> dict[str, Tensor]:
        """Its tensors by Hugging Face's names in the model without a head; none where there is no such layer."""
        form = FORMS[self.config.form] if self.config.form else None
        parts = (("dense", form.dense), ("norm", form.norm)) if form else ()
        return {
            f"{theirs.removeprefix(form.prefix)}.{kind}": parameter.detach()
            for ours, theirs in parts
            if theirs and form
            for kind, parameter in getattr(self, ours).named_parameters()
        }


def activation(name: str) -> Callable[[Tensor], Tensor]:
    return torch.tanh if name == "tanh" else ACTIVATIONS[name]


def pooled(hidden: Tensor, rows: Rows, pooling: str) -> Tensor:
    """One vector for each row: (T, D) -> (B, D)."""
    if pooling == "last":
        return hidden.index_select(0, rows.last)
    lengths = torch.tensor(rows.lengths)
    if pooling == "cls":
        return hidden.index_select(0, rows.last - lengths + 1)
    assert pooling == "mean", pooling
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    sums = wide.new_zeros(len(lengths), hidden.shape[1])
    sums = sums.index_add(0, torch.repeat_interleave(torch.arange(len(lengths)), lengths), wide)
    return (sums / lengths[:, None]).to(hidden.dtype)


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
    spare = model.spare | (model.task_head.hidden_layer() if model.task_head else {})
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
