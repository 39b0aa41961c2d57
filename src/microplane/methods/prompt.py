"""Prompt tuning, arXiv 2104.08691: X' = [P; E(x)], with P (l, D) before the embeddings of every row; P alone trains.

Of an encoder-decoder, before the rows that the encoder reads. What the model gives out are the states of the tokens
alone. The output is not the base's at first: even a prompt of words changes what is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from microplane.device import CPU, put
from microplane.errors import AdapterError, ConfigError
from microplane.methods import peft_format
from microplane.methods.disable import AddedModule
from microplane.methods.method import NEEDS_SOCKETS, OUTER_PREFIX, Method
from microplane.methods.norms import norm_parameters, norms_apart, unfreeze
from microplane.models.contract import Model
from microplane.nn.prompt_socket import PromptSocket
from microplane.nn.rows import Rows, prepend_to_each_row

COMMON = 5000  # the paper draws from so many most common tokens, which in its vocabulary are the first
STATE = "prompt_embeddings"  # peft's name


class Prompt(AddedModule, PromptSocket):
    def __init__(self, vectors: Tensor):
        super().__init__()
        self.length = len(vectors)
        self.vectors = nn.Parameter(vectors)  # (l, D)

    def forward(self, x: Tensor, rows: Rows, starts: Sequence[int] | None = None) -> tuple[Tensor, Rows]:
        if starts is not None and any(starts):
            return x, rows
        return prepend_to_each_row(self.vectors.to(x.dtype), x, rows.lengths), rows.with_prefix_positions(self.length)

    def replaced(self) -> nn.Module:
        return PromptSocket()


class PromptTuning(Method):
    name: ClassVar[str] = "prompt"
    summary: ClassVar[str] = "trained vectors before the embeddings of every row; needs a large model and a high rate"
    default_lr: ClassVar[float] = 1e-1
    trains_matrices: ClassVar[bool] = False
    needs_own_model: ClassVar[str | None] = NEEDS_SOCKETS
    starts_at_base: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "PROMPT_TUNING"
    caution_in_peft: ClassVar[str] = (
        "on a decoder, peft puts the vectors before the padding and counts it as text: ask it one row at a time there, "
        "or rows that are padded on the right"
    )
    prefix: ClassVar[str] = OUTER_PREFIX

    length: int = Field(20, ge=1, description="how many vectors; they take places of the context")
    start: Literal["vocabulary", "text", "random"] = Field(
        "vocabulary", description="what they begin as: embeddings of random common tokens, of method.text, or noise"
    )
    text: str | None = Field(None, description="start text: its words, repeated or cut to the length")
    text_ids: tuple[int, ...] = Field((), description="start text: its tokens; filled in from method.text")
    norms: bool = Field(False, description="the model's norms train too")

    @model_validator(mode="after")
    def _text_where_it_counts(self) -> Self:
        if (self.start == "text") != bool(self.text or self.text_ids):
            raise ValueError(f"start = {self.start!r} and text = {self.text!r}: start=text and a text belong together")
        return self

    @property
    def trains(self) -> Literal["adapter", "vectors"]:  # type: ignore[override]
        return "vectors" if self.norms else "adapter"

    @property
    def num_virtual_tokens(self) -> int:
        return self.length

    def with_tokens(self, encode: Callable[[str], list[int]]) -> Self:
        if self.text is None:
            return self
        if not (ids := encode(self.text)):
            raise ConfigError(f"method.text = {self.text!r} has no tokens; give it some words")
        if self.text_ids and list(self.text_ids) != ids:
            raise ConfigError(
                f"method.text_ids = {list(self.text_ids)} are not the tokens of method.text = {self.text!r}: these are "
                f"{ids} in this model. Leave text_ids out"
            )
        return self.model_copy(update={"text_ids": tuple(ids)})

    def attach(self, model: nn.Module) -> None:
        if not isinstance(getattr(model, "prompt_socket", None), PromptSocket):
            raise ConfigError(f"{type(model).__name__} has no place for a prompt before its rows; choose lora")
        model = cast(Model, model)
        if model.config.context and self.length >= model.config.context:
            raise ConfigError(f"method.length = {self.length}: the model's context is {model.config.context} in all")
        model.requires_grad_(False)
        model.prompt_socket = Prompt(self._begin(model))
        if self.norms:
            unfreeze(norm_parameters(model))

    @torch.no_grad()
    def _begin(self, model: Model) -> Tensor:
        """(l, D) float32."""
        size = cast(nn.Embedding, model.embed).num_embeddings
        if self.start == "text":
            if not self.text_ids:
                raise ConfigError("method.start = 'text' needs the text's tokens: method.with_tokens(tokenizer.encode)")
            if max(self.text_ids) >= size:
                raise ConfigError(f"method.text_ids has {max(self.text_ids)}, and the model has {size} tokens")
            ids = put(torch.tensor(list(islice(cycle(self.text_ids), self.length))), model.device)
        else:
            ids = torch.randint(min(size, COMMON), (self.length,)).to(model.device)
        words = model.embedded(ids)
        words = words.to(torch.promote_types(words.dtype, torch.float32))
        if self.start != "random":
            return words.clone()
        noise = torch.randn_like(words, device=None if words.is_meta else CPU)  # the same on every device
        return put(noise, words.device) * words.std()

    def param_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        return norms_apart(model, lr)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The prompt under peft's name, and the norms where they train."""
        vectors = cast(Prompt, model.prompt_socket).vectors
        rest = {name: tensor for name, tensor in super().state(model).items() if tensor is not vectors}
        return {STATE: vectors, **rest}

    def has_peft_format(self, model: nn.Module) -> bool:
        """Which has no room for norms. peft computes something else where transformers scales embeddings apart from
        where it makes them, and of labels of rows but on a decoder: an encoder pools the prompt too, and a class of an
        encoder-decoder takes no embeddings."""
        return not (self.norms or getattr(cast(Any, model).config, "scales_apart", False) or _labels_rows(model))

    def peft_config(self, model: nn.Module) -> dict[str, Any] | None:
        if not self.has_peft_format(model):
            return None
        return virtual_tokens(self, model, self.length) | {"prompt_tuning_init": "RANDOM"}

    @classmethod
    def of_peft(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        return {"length": length_of_peft(config)}


def _labels_rows(model: nn.Module) -> bool:
    """Whether one of Hugging Face's classes says labels of rows, on another model than a decoder."""
    head = getattr(model, "task_head", None)
    named = head is not None and head.config.form is not None and not head.config.per_token
    return named and getattr(model, "KIND", "") != "decoder"


def virtual_tokens(method: Method, model: nn.Module, length: int) -> dict[str, Any]:
    """What peft's methods that put something before a row say in adapter_config.json."""
    config = cast(Any, model).config
    return {
        "peft_type": method.peft_type,
        **peft_format.task_fields(model),
        "num_virtual_tokens": length,
        "token_dim": getattr(config, "embedding_size", 0) or getattr(config, "source_size", config.hidden_size),
        "num_attention_heads": getattr(config, "num_heads", None),
        "num_layers": config.num_layers,
        "num_transformer_submodules": 1,
        "inference_mode": True,
    }


def length_of_peft(config: Mapping[str, Any]) -> int:
    peft_format.need(config, "num_virtual_tokens")
    if config.get("num_transformer_submodules") not in (1, None):
        raise AdapterError(
            f"peft's num_transformer_submodules = {config['num_transformer_submodules']!r} is not supported; only 1 is"
        )
    length: int = config["num_virtual_tokens"]  # make_method checks that it is one
    return length
