"""Encoders without an implementation here, run by transformers: for labels, numbers, tags, pairs and embeddings.

    T  tokens of all rows, side by side      B, S  rows and the longest of them, as a padded rectangle
    D  model width                           C     classes, or values of a regression

`net` is the model without a head (AutoModel) under a head of ours; or, where it pools as is wanted, the family's own
class with its head (AutoModelForSequenceClassification, AutoModelForTokenClassification), which any tool opens.

What rows may be computed together, and which weights have a part in the result, is tried on a few tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from microplane.errors import ModelError
from microplane.models.configs.form import Form
from microplane.models.configs.head import OWN, PER_TOKEN, POOLINGS, HeadConfig, head_of_class
from microplane.models.external.any_module import map_modules
from microplane.models.external.class_head import ClassHead, fill_new, head_parts
from microplane.models.external.library import (
    POOLER,
    class_named,
    find_transformers_class,
    hf_config,
    label_class,
    new_net,
    quiet,
    read_net,
    takes,
)
from microplane.models.external.reached import last_norm, not_reached
from microplane.models.external.together import FAILURES, Together, groups, in_order, trial_rows, try_together
from microplane.models.external.transformers import TransformersModel, TransformersModelConfig
from microplane.models.files.checkpoint import Checkpoint
from microplane.nn.cache import Cache
from microplane.nn.rows import Pairs, Rows, from_grid

# As config.json calls what its class makes of a row.
SUMMARIES = {"first": "cls", "last": "last", "mean": "mean", "cls": "cls", "bos": "cls"}
IDLE = "has no part in what this model computes of rows of text, so nothing in it could train"
QUERIES = (".query.weight", ".q_proj.weight", ".q_lin.weight")
OF_HEAD = "is a part of the head, which trains whole"


class TransformersEncoder(TransformersModel):
    """An encoder of transformers."""

    head = None
    is_widened = False  # kept in float32, whatever was asked for
    unreached: frozenset[str] = frozenset()  # names of parameters that have no part in the result

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> TransformersEncoder:
        config = TransformersModelConfig.from_hf(fields)
        plain, _ = find_transformers_class({**fields, "architectures": None})
        if plain != config.architecture:
            tokens = config.architecture == label_class(str(fields["model_type"]), tokens=True)
            pooling = _class_pooling(hf_config(fields))
            head = head_of_class(config.architecture, tokens, fields, config.hidden_size, pooling)
            config = replace(config, architecture=plain, head=head)
        return cls(config)

    @property
    def load_notice(self) -> str:  # type: ignore[override]
        wide = "; kept in float32, since transformers' code of it fails in other formats" if self.is_widened else ""
        return super().load_notice + wide

    def new_net(self) -> Any:
        head = self.config.head
        if head is not None:
            return new_net(cast(str, head.form), _fields(self.config.fields, head))
        return _without_pooler(new_net(self.config.architecture, self.config.fields))

    def set_net(self, net: Any) -> None:
        self.net, head = net, self.config.head
        self.task_head = ClassHead(head, net) if head is not None else None
        self.config = replace(self.config, context=_context(net, self.config.context))
        if not any(parameter.is_meta for parameter in net.parameters()):
            self._try()
        self._map()

    def read_weights(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        head, config = self.config.head, self.config
        if head is not None:
            fields = _fields(config.fields, head)
            self.set_net(read_net(cast(str, head.form), fields, checkpoint.path, dtype))
            return
        own = self.task_head  # ours, whose weights lie beside those that transformers knows
        self.set_net(_without_pooler(read_net(config.architecture, config.fields, checkpoint.path, dtype, plain=True)))
        if own is not None:
            stored = {name.removeprefix(f"{OWN}."): t for name, t in checkpoint.tensors.items() if name.startswith(OWN)}
            own.to_empty(device="cpu").load_state_dict(stored, assign=True)
            self.task_head = own.float()

    @property
    def frozen(self) -> int:
        """As the contract has it; but of a class with its own head nothing can be computed once for all."""
        return 0 if self.config.head is not None else self._frozen

    @frozen.setter
    def frozen(self, blocks: int) -> None:
        self._frozen = blocks

    _frozen = 0

    def train(self, mode: bool = True) -> TransformersEncoder:
        nn.Module.train(self, mode)
        if self.frozen:
            self.net.eval()
        return self

    # What it computes

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        assert isinstance(rows, Rows)
        return self._states(rows, self.together)

    def lower(self, rows: Rows, blocks: int) -> Tensor:
        assert blocks == self.config.num_layers, "which blocks there are is not known here"
        return self(rows)

    def upper(self, x: Tensor, rows: Rows, blocks: int) -> Tensor:
        return x

    def class_scores(self, rows: Rows) -> Tensor:
        """What the family's own class says: (B, C), or (T, C) for tokens; float32."""
        return self._class_scores(rows, self.together)

    def _states(self, rows: Rows, together: Together) -> Tensor:
        found = []
        body = self.net.base_model
        for numbers, own in groups(rows, together):
            states = self._computed(body, own).last_hidden_state
            found.append((numbers, torch.split(from_grid(states, own), list(own.lengths))))
        return torch.cat(in_order(found))

    def _class_scores(self, rows: Rows, together: Together) -> Tensor:
        assert self.config.head is not None
        found = []
        for numbers, own in groups(rows, together):
            scores = self._computed(self.net, own).logits.float()
            if self.config.head.per_token:
                found.append((numbers, torch.split(from_grid(scores, own), list(own.lengths))))
            else:
                found.append((numbers, torch.split(scores, 1)))
        return torch.cat(in_order(found))

    def _computed(self, net: nn.Module, rows: Rows) -> Any:
        """What transformers' model gives for rows, as a rectangle padded on the right."""
        ids, mask = rows.ids[rows.grid], rows.is_token
        pad = getattr(self.net.config, "pad_token_id", None)
        given = {"input_ids": ids if pad is None else ids.masked_fill(~mask, pad), "attention_mask": mask.long()}
        if rows.types is not None:
            most = getattr(self.net.config, "type_vocab_size", None)
            types = rows.types[rows.grid]
            given["token_type_ids"] = types if most is None else types.clamp(max=max(0, most - 1))
        with self.compute_format(), quiet():
            return net(**{name: x for name, x in given.items() if takes(net, name)}, return_dict=True)

    def _try(self) -> None:
        """Find what may be computed together, and what has no part in the result.

        Raises:
            ModelError: if it does not compute rows of tokens, or only with code that this machine does not run.
        """
        named = self.config.architecture if self.config.head is None else self.config.head.form
        try:
            try:
                idle = self._tried()
            except RuntimeError:  # as of DeBERTa, whose code mixes formats, and of XLNet, whose weights then are of two
                kinds = {one.dtype for one in self.net.parameters() if one.is_floating_point()}
                if self.compute is None and kinds == {torch.float32}:
                    raise
                self.compute, self.is_widened = None, True
                self.net.float()
                idle = self._tried()
        except FAILURES as error:
            raise ModelError(
                f"transformers' {named} computes nothing of a row of tokens alone: {type(error).__name__}: {error}"
            ) from None
        self.unreached = frozenset(f"net.{name}" for name in idle)
        queries = [name for name, _ in self.named_parameters() if name.endswith(QUERIES)]
        if queries and self.unreached.issuperset(queries):
            raise ModelError(
                f"transformers' {named} pays no attention on this machine ({queries[0].removeprefix('net.')} has no "
                "part in its result): it has code for that on other processors only"
            )

    @torch.no_grad()
    def _tried(self) -> set[str]:
        told = trial_rows(self.config.vocab_size, getattr(self.net.config, "pad_token_id", None))
        rows = Rows.of(told, types=[[0] * len(row) for row in told]).to(self.device)
        compute = self._states if self.config.head is None else self._class_scores
        was_training = self.net.training
        self.net.eval()
        try:
            found = compute(rows, Together.ALONE)
            if self.config.head is None and found.shape != (len(rows.ids), self.config.hidden_size):
                raise ValueError("its states are not one for each token")
            self.together = try_together(rows, compute, self.compute or self.net.dtype)
            last = last_norm(self.net.base_model, lambda: compute(rows, Together.ALONE))
            self.post_norm = last is not None and any(part.isdigit() for part in last.split("."))  # within a block
            return not_reached(self.net, lambda: compute(rows, Together.ALONE))
        finally:
            self.net.train(was_training)

    def _map(self) -> None:
        left = {name.removesuffix(".weight"): IDLE for name in self.unreached if name.endswith(".weight")}
        parts = head_parts(self.net, self.config.head.per_token) if self.config.head is not None else []
        inside = [name for name, _ in self.named_modules() if any(f"{name}.".startswith(f"net.{p}.") for p in parts)]
        map_modules(self, prefix="net.", left={**left, **dict.fromkeys(inside, OF_HEAD)})

    def as_tried(self, other: TransformersEncoder) -> None:
        self.together, self.unreached, self.post_norm = other.together, other.unreached, other.post_norm
        self._map()

    def idle(self) -> list[nn.Parameter]:
        """The parameters that have no part in the result."""
        return [parameter for name, parameter in self.named_parameters() if name in self.unreached]

    # Heads

    def own_head(self, task: str) -> tuple[str, str] | None:
        """(class, pooling) of the family's own class for such labels; None if it has none."""
        form = label_class(str(self.config.fields["model_type"]), task == PER_TOKEN)
        return None if form is None else (form, _class_pooling(self.net.config))

    def layout(self, per_token: bool) -> Form | None:
        """How the family's own class lays out its head: its last layer is the one that follows the number of labels."""
        own = self.own_head(PER_TOKEN if per_token else "classification")
        if own is None:
            return None
        with torch.device("meta"):
            two, three = (
                class_named(own[0])(hf_config({**self.config.fields, "id2label": dict(enumerate("abc"[:count]))}))
                for count in (2, 3)
            )
        shapes = dict(three.named_parameters())
        changed = (name for name, tensor in two.named_parameters() if tensor.shape != shapes[name].shape)
        out = next((name.removesuffix(".weight") for name in changed if name.endswith(".weight")), None)
        prefix = f"{two.base_model_prefix}."
        return None if out is None else Form(self.config.architecture, out, prefix, per_token, poolings=(own[1],))

    def put_own_head(self, head: HeadConfig, seed: int) -> ClassHead:
        """Use the family's own class, `head.form`, over the weights that are there; its head is new.

        Raises:
            ModelError: if it does not compute rows of tokens.
        """
        body, known = self.plain_net(), dict(self.extra_weights)
        if self.config.head is not None:
            known |= dict(self.net.named_parameters())
        fields, on_meta = _fields(self.config.fields, head), any(p.is_meta for p in body.parameters())
        with torch.device("meta"):
            net = class_named(cast(str, head.form))(hf_config(fields))
        prefix, base = net.base_model_prefix, net.base_model
        if type(base) is not type(body):  # Funnel labels sentences without its decoder
            base = type(base)(net.config).to(body.dtype)
            own = {name: tensor for name, tensor in body.state_dict().items() if name in base.state_dict()}
            base.load_state_dict(own, strict=False, assign=True)
        elif getattr(base, POOLER, None) is not None and getattr(body, POOLER, None) is None:
            body.pooler, base = base.pooler, body
        else:
            base = body
        setattr(net, prefix, base)
        self._body = (body,)
        if not on_meta:
            fill_new(net, seed, known | {f"{prefix}.{name}": tensor for name, tensor in self.extra_weights.items()})
        self.config = replace(self.config, head=head)
        self.set_net(net.train(self.training).requires_grad_(False))
        return cast(ClassHead, self.task_head)

    _body: tuple[Any, ...] = ()

    def plain_net(self) -> Any:
        """The model without a head, as it stands in `net`."""
        if self.config.head is None:
            return self.net
        body = self._body[0] if self._body else self.net.base_model
        if type(body).__name__ != self.config.architecture:
            raise ModelError(
                f"the folder holds a {self.config.head.form}, which lacks a part of {self.config.architecture}: only "
                "its own labels can be trained. Give the model as it was before it learnt labels"
            )
        return _without_pooler(body)

    def take_off_own_head(self) -> None:
        """Use the model without a head."""
        if self.config.head is not None:
            net = self.plain_net()
            self.config = replace(self.config, head=None)
            self.set_net(net)

    # Names in files

    def plain_tensors(self) -> dict[str, Tensor]:
        beside = self.task_head if self.config.head is None else None  # a head of ours is no part of `net`
        own = {} if beside is None else beside.state_dict()
        return super().plain_tensors() | {f"{OWN}.{name}": tensor for name, tensor in own.items()}

    def canonical_name(self, name: str) -> str:
        return name.removeprefix(f"{self.net.base_model_prefix}.") if self.config.head is None else name

    def is_head_weight(self, name: str) -> bool:
        """The pooler, which may initialise a head."""
        return name.startswith(f"{POOLER}.") and self.config.head is None

    def extra_weights_to_save(self) -> dict[str, Tensor]:
        """The pooler: transformers' model without a head contains it."""
        return self.extra_weights

    def logits(self, hidden: Tensor) -> NoReturn:
        raise self._no_words()

    def start_generation(self, prompts: Any) -> NoReturn:
        raise self._no_words()

    def _no_words(self) -> ModelError:
        return ModelError(
            f"{self.config.architecture} is an encoder and writes no text: it can be trained to classify texts or"
            " tokens, and it embeds. For text, take a decoder or an encoder-decoder"
        )


def _fields(fields: Mapping[str, Any], head: HeadConfig) -> dict[str, Any]:
    """A config.json with the labels of a head."""
    return {name: value for name, value in fields.items() if name != "num_labels"} | head.to_hf()


def _class_pooling(config: Any) -> str:
    """How the family's own class makes one vector of a row: by its first token, where config.json says nothing."""
    told = getattr(config, "summary_type", None) or getattr(config, "classifier_pooling", None)
    return SUMMARIES.get(str(told), POOLINGS[0])


def _without_pooler(net: Any) -> Any:
    """The model without what pools sentences, where the family has it so."""
    if "add_pooling_layer" in inspect.signature(type(net).__init__).parameters and hasattr(net, POOLER):
        net.pooler = None
    return net


def _context(net: nn.Module, told: int) -> int:
    """How many tokens a row may have: RoBERTa's kind counts positions from behind the number of its pad, and BigBird
    leaves out connections in rows beyond a length, by chance and depending on the rows beside."""
    for name, module in net.named_modules():
        if name.rsplit(".", 1)[-1] == "position_embeddings" and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            told = min(told, module.num_embeddings - first)
    config: Any = net.config
    if getattr(config, "attention_type", None) == "block_sparse":
        told = min(told, (5 + 2 * config.num_random_blocks) * config.block_size)
    return told
