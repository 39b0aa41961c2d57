"""Decoders and encoder-decoders without an implementation here, run by transformers: models that write text.

    T  tokens of all rows, side by side      B, S  rows and the longest of them, as a padded rectangle
    D  width of what goes into the head      K     positions whose logits are wanted

What a model does between its last hidden state and its logits is not known here. So it is tried: where the head alone
gives the model's logits, but for rounding, logits are computed at the wanted positions only, else for every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microplane.errors import ConfigError, ModelError, notice
from microplane.models.contract import in_eval_mode
from microplane.models.external.any_module import map_modules
from microplane.models.external.generation import StateCache, TokenCache, extend
from microplane.models.external.library import read_net
from microplane.models.external.reached import READ, read_by_the_model
from microplane.models.external.together import (
    FAILURES,
    Together,
    first_that_agrees,
    groups,
    in_order,
    trial_rows,
    try_together,
)
from microplane.models.external.transformers import TransformersModel, TransformersModelConfig
from microplane.models.files.checkpoint import Checkpoint
from microplane.nn.cache import Cache
from microplane.nn.rows import Pairs, Rows, from_grid

CACHE_NOTICES = {
    Together.PADDED: "",
    Together.EVEN: "writes only rows of equal length together, for padding changes what it says",
    Together.ALONE: "writes rows one by one, for each changes what it says in the others",
    None: "writes without a cache, for transformers has none that says the same: each token computes its whole row",
}


class TransformersWriter(TransformersModel):
    """A decoder or encoder-decoder of transformers."""

    head_is_separable = True  # the head alone gives the logits
    head_name: str | None
    cached: Together | None = Together.PADDED  # which rows share a cache; None: it writes without one
    unadaptable: frozenset[str] = frozenset()  # names of linear layers
    is_tried = False  # whether that was tried: it is when first asked to write

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> TransformersWriter:
        return cls(TransformersModelConfig.from_hf(fields))

    def set_net(self, net: nn.Module) -> None:
        """Use `net`, a model of transformers, and map its modules."""
        self.net = net
        head = self.net.get_output_embeddings()
        self.head_name = next((name for name, module in self.named_modules() if module is head), None)
        on_meta = any(parameter.is_meta for parameter in net.parameters())
        self.head_is_separable = self.head_name is not None and (on_meta or self._head_gives_logits())
        if not on_meta:
            self._try()
        self._map()

    def _map(self) -> None:
        map_modules(self, prefix="net.", left=dict.fromkeys(self.unadaptable, READ))

    def as_tried(self, other: TransformersWriter) -> None:
        self.together, self.unadaptable = other.together, other.unadaptable
        self.head_is_separable = other.head_is_separable
        self._map()

    def read_weights(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self.set_net(read_net(self.config.architecture, self.config.fields, checkpoint.path, dtype))

    @property
    def head(self) -> nn.Module:
        """The module that makes logits of the output of `forward`; Identity if `forward` gives logits itself."""
        return self.get_submodule(self.head_name) if self.head_is_separable and self.head_name else nn.Identity()

    @head.setter
    def head(self, head: nn.Module | None) -> None:
        raise ConfigError(
            f"labels need a task head, and {self.config.architecture}, which is loaded through transformers, takes "
            "none here. Choose a model that Microplane has code for, or give the labels as answers: data.task=answers"
        )

    @property
    def head_weight(self) -> Tensor:
        return self.head.get_parameter("weight")

    @property
    def head_bias(self) -> Tensor | None:
        return getattr(self.head, "bias", None)

    def forward(self, rows: Rows | Pairs, cache: Cache | None = None) -> Tensor:
        """The input of `logits` for every token: (T, D), or (T, V) if the head cannot be separated."""
        if isinstance(rows, Pairs):
            return self._decoded(rows.target, self._encoded(rows.source))
        if isinstance(cache, StateCache):
            with self.compute_format():
                return torch.cat(extend(self.net, self._body, cache, rows))
        if cache is None:
            return self._decoded(rows, None)
        assert isinstance(cache, TokenCache)
        whole, new = cache.extend(rows), rows.lengths
        output = self._decoded(whole, None if cache.memory is None else cache.memory)
        kept = [
            row[len(row) - count :] for row, count in zip(torch.split(output, list(whole.lengths)), new, strict=True)
        ]
        return torch.cat(kept)

    @property
    def _body(self) -> Any:
        """What gives the output of `forward`: the model without its head, where that can be separated."""
        return self.net.base_model if self.head_is_separable else self.net

    def encode(self, source: Rows) -> Tensor:
        return torch.cat(self._encoded(source))

    def _encoded(self, source: Rows) -> list[Tensor]:
        """The encoder's output for each row, (tokens, D)."""
        found = [(numbers, self._encoded_together(own)) for numbers, own in groups(source, self.together)]
        return in_order(found)

    def _encoded_together(self, source: Rows) -> list[Tensor]:
        ids, mask = _rectangle(source)
        with self.compute_format():
            output = self.net.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return list(torch.split(from_grid(output, source), list(source.lengths)))

    def _decoded(self, rows: Rows, memory: list[Tensor] | None) -> Tensor:
        keys = None if memory is None else [len(row) for row in memory]
        found = []
        for numbers, own in groups(rows, self.together, keys):
            part = self._decoded_together(own, None if memory is None else [memory[number] for number in numbers])
            if len(numbers) == len(rows.lengths):
                return part
            found.append((numbers, torch.split(part, list(own.lengths))))
        return torch.cat(in_order(found))

    def _decoded_together(self, rows: Rows, memory: list[Tensor] | None) -> Tensor:
        ids, mask = _rectangle(rows)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if memory is not None:
            from transformers.modeling_outputs import BaseModelOutput

            read = Rows.of_lengths(tuple(map(len, memory)), ids.device).is_token.long()
            given = {
                "encoder_outputs": BaseModelOutput(nn.utils.rnn.pad_sequence(memory, batch_first=True)),
                "attention_mask": read,
                "decoder_input_ids": ids,
                "decoder_attention_mask": mask,
            }
        with self.compute_format():
            output = self._body(**given, use_cache=False, return_dict=True)
        return from_grid(output.last_hidden_state if self.head_is_separable else output.logits, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        with self.compute_format():
            scores: Tensor = self.head(hidden)
        return scores

    def start_generation(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        if not self.is_tried:
            self._try_cache()
        return self._begin(prompts, self.cached)

    def _begin(self, prompts: Sequence[Sequence[int]], together: Together | None) -> tuple[Cache, list[list[int]]]:
        pair = self.KIND == "encoder-decoder"
        memory = self._encoded(Rows.of(prompts).to(self.device)) if pair else None
        cache = TokenCache(len(prompts), memory) if together is None else StateCache(len(prompts), together, memory)
        return cache, [[self.config.decoder_start] if pair else list(prompt) for prompt in prompts]  # type: ignore[list-item]

    def _try(self) -> None:
        """Find which rows may be computed together.

        Raises:
            ModelError: if it does not compute a row.
        """
        told = Rows.of(trial_rows(self.config.vocab_size, getattr(self.net.config, "pad_token_id", None)))
        told = told.to(self.device)
        rows: Rows | Pairs = Pairs(told, told) if self.KIND == "encoder-decoder" else told

        def compute(_: Rows, together: Together) -> Tensor:
            self.together = together
            return self(rows)

        with in_eval_mode(self), torch.no_grad():
            try:
                self.together = try_together(told, compute, self.compute or self.net.dtype)
                self.unadaptable = self._read(rows)
            except FAILURES as error:
                raise ModelError(
                    f"transformers' {self.config.architecture} computes nothing of a row of tokens alone: "
                    f"{type(error).__name__}: {error}"
                ) from None

    def _read(self, rows: Rows | Pairs) -> frozenset[str]:
        """The linear layers whose weight the model reads itself, in training or outside of it."""
        found = set[str]()
        for mode in (True, False):
            with torch.random.fork_rng(devices=[]):
                self.net.train(mode)
                found |= read_by_the_model(self, lambda: self(rows))
        return frozenset(found)

    def _try_cache(self) -> None:
        """Find with which of transformers' caches it writes what it computes of whole rows; told if with none."""
        told = trial_rows(self.config.vocab_size, getattr(self.net.config, "pad_token_id", None))

        def compute(together: Together | None) -> Tensor:
            """What is written from, four times; between, tokens are added, and rows chosen as a search does."""
            cache, tokens = self._begin(told, together)
            going, found = list(told), []
            for step, order in enumerate(([0, 1, 2], [1, 0, 0], [2, 0], [0, 1])):
                rows = Rows.of(tokens, starts=cache.lengths).to(self.device)
                found.append(self(rows, cache)[rows.last])
                cache.select(order)
                going = [going[number] for number in order]
                tokens = [[row[step]] for row in going]
            return torch.cat(found)

        dtype = self.compute or self.net.dtype
        with torch.no_grad():
            self.cached = first_that_agrees(compute(None), compute, dtype)
        self.is_tried = True
        if said := CACHE_NOTICES[self.cached]:
            notice(f"{self.config.architecture} {said}")

    @torch.no_grad()
    def _head_gives_logits(self) -> bool:
        """True if the model's logits are head(last hidden state), with no operation between or after."""
        was_training = self.net.training
        self.net.eval()
        ids = [number % self.config.vocab_size for number in (3, 1, 4, 1, 5)]
        rows: Rows | Pairs = Rows.of([ids]).to(self.device)
        rows = Pairs(rows, rows) if self.KIND == "encoder-decoder" else rows  # type: ignore[arg-type]
        found = []
        try:
            for self.head_is_separable in (False, True):
                found.append(self.logits(self(rows)))
        except FAILURES:  # no such body, no such output, another width
            return False
        finally:
            self.net.train(was_training)
        whole, alone = found
        rounding = 8 * torch.finfo(whole.dtype).eps * whole.abs().max()
        return whole.shape == alone.shape and bool((whole - alone).abs().max() <= rounding)


def _rectangle(rows: Rows) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both (B, S): padded on the right with copies of the last token."""
    return rows.ids[rows.grid], rows.is_token.long()
