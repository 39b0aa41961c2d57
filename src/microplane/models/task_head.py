"""The task head: what turns the states of a model into scores of classes, numbers or tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from microplane.models.configs.head import FORMS, OWN, HeadConfig
from microplane.nn.layers import ACTIVATIONS, LayerNorm, Linear
from microplane.nn.ops.dropout import dropout
from microplane.nn.rows import Rows


class TaskHead(nn.Module):
    """dropout and a linear layer; where the form has it, a hidden layer before them.

    Attributes:
        unit: by which the last layer's scores are multiplied, see `learn_in`.
    """

    unit = 1.0

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        form, D = config.form and FORMS[config.form], config.width
        self.dense = Linear(D, D, bias=config.dense_bias) if form and form.dense else None
        self.norm = LayerNorm(D, eps=config.norm_eps, bias=config.norm_bias) if form and form.norm else None
        self.out = Linear(D, len(config.labels), bias=form.out_bias if form else True)
        self.dropout_first = bool(form and form.dropout_first)

    def pool(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(T, D) -> (B, D)."""
        return pooled(hidden, rows, self.config.pooling)

    def scores(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(T, D) -> (B, C), or (T, C) for tokens; at least float32."""
        return self.predict(hidden if self.config.per_token else self.pool(hidden, rows))

    def predict(self, x: Tensor) -> Tensor:
        """Of vectors that are pooled already, or of single tokens: (B, D) -> (B, C); at least float32."""
        p = self.config.dropout
        if self.dense is not None:
            x = dropout(x, p, self.training) if self.dropout_first else x
            x = activation(self.config.activation)(self.dense(x))
            x = x if self.norm is None else self.norm(x)
        x = dropout(x, p, self.training)
        return self.in_data_units(self.out(x.to(torch.promote_types(x.dtype, torch.float32))))

    @property
    def last(self) -> nn.Linear | None:
        """The layer that gives the scores; None where it is not known."""
        return self.out

    def in_data_units(self, scores: Tensor) -> Tensor:
        """What the last layer gives, as the labels are written."""
        return scores if self.unit == 1.0 else scores * self.unit

    @torch.no_grad()
    def learn_in(self, unit: float, mean: float | None = None) -> None:
        """Train the last layer in another unit than that of the labels, so that its weights are as large as others'.

        Files hold it in the unit of the labels (`in_data_units` of `models/heads.py`, `state_of`).

        Args:
            unit: a power of two, so that nothing is rounded.
            mean: what a new head says at first; None: all that the head says stays as it is.
        """
        assert self.unit == 1.0, "the unit is set once"
        if self.last is None:
            return
        self.unit = unit
        if mean is None:
            for parameter in self.last.parameters():
                parameter.div_(unit)
        elif self.last.bias is not None:
            self.last.bias.fill_(mean / unit)

    def hf_names(self, beneath: Mapping[str, str]) -> dict[str, str]:
        """Our parameter name -> Hugging Face's, of the model beneath, whose plain names are given, and of this head."""
        form = FORMS[self.config.form] if self.config.form else None
        names = {ours: (form.prefix if form else "") + theirs for ours, theirs in beneath.items()}
        plain: dict[str, str | None] = {"out": f"{OWN}.out"}
        called = {"out": form.out, "dense": form.dense, "norm": form.norm} if form else plain
        for name, _ in self.named_parameters():
            module, kind = name.split(".")
            names[f"{OWN}.{name}"] = f"{called[module]}.{kind}"
        return names

    def modules_to_save(self) -> list[str]:
        """What peft is told to train in full beside an adapter: the head's modules, by Hugging Face's names; none of a
        head that Hugging Face has no class for."""
        if self.config.form is None:
            return []
        form = FORMS[self.config.form]
        parts = (name.removeprefix(form.prefix) for name in (form.out, form.dense, form.norm) if name)
        return sorted({part.split(".")[0] for part in parts})

    @torch.no_grad()
    def init_weights(self, std: float = 0.02, seed: int = 0, spare: Mapping[str, Tensor] | None = None) -> TaskHead:
        """New weights, normal with that deviation, biases 0; the hidden layer from `spare`, where pre-training (BERT's
        pooler, ModernBERT's) or the head before this one has left one that fits. On the meta device nothing is drawn:
        torch imports its compiler to draw there, which takes a process some two seconds."""
        if self.out.weight.is_meta:
            return self
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
    if pooling == "cls":
        return hidden.index_select(0, rows.last - rows.sizes + 1)
    assert pooling == "mean", pooling
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    sums = wide.new_zeros(len(rows.lengths), hidden.shape[1]).index_add(0, rows.row_of_token, wide)
    return (sums / rows.sizes[:, None]).to(hidden.dtype)
