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

from microplane.errors import ConfigError
from microplane.models.external.any_module import map_modules
from microplane.models.external.library import read_net
from microplane.models.external.transformers import TransformersModel, TransformersModelConfig
from microplane.models.files.checkpoint import Checkpoint
from microplane.nn.attention import MaskSpec
from microplane.nn.cache import Cache
from microplane.nn.rows import Pairs, Rows, from_grid


class TokenCache(Cache):
    """A cache of the rows' tokens instead of keys and values; of an encoder-decoder also the encoder's output."""

    def __init__(self, batch: int, memory: list[Tensor] | None = None):
        super().__init__(0, batch)
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.memory = memory  # (tokens of the source, width) of each row

    def extend(self, rows: Rows) -> Rows:
        """Append new tokens. Returns the rows from their start."""
        for held, new in zip(self.rows, torch.split(rows.ids, list(rows.lengths)), strict=True):
            held.extend(new.tolist())
        self.advance(rows)
        return Rows.of(self.rows)

    def select(self, indices: Sequence[int]) -> None:
        super().select(indices)
        self.rows = [list(self.rows[index]) for index in indices]
        self.memory = None if self.memory is None else [self.memory[index] for index in indices]


class TransformersWriter(TransformersModel):
    """A decoder or encoder-decoder of transformers."""

    head_is_separable = True  # the head alone gives the logits
    head_name: str | None

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> TransformersWriter:
        return cls(TransformersModelConfig.from_hf(fields))

    def set_net(self, net: nn.Module) -> None:
        """Use `net`, a model of transformers, and map its modules."""
        self.net = net
        map_modules(self, prefix="net.")
        head = self.net.get_output_embeddings()
        self.head_name = next((name for name, module in self.named_modules() if module is head), None)
        on_meta = any(parameter.is_meta for parameter in net.parameters())
        self.head_is_separable = self.head_name is not None and (on_meta or self._head_gives_logits())

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
        if cache is None:
            return self._decoded(rows, None)
        assert isinstance(cache, TokenCache)
        whole, new = cache.extend(rows), torch.tensor(rows.lengths)
        output = self._decoded(whole, None if cache.memory is None else cache.memory)
        ends = torch.repeat_interleave(whole.last + 1, new)
        back = torch.cat([torch.arange(count, 0, -1) for count in rows.lengths])
        return output.index_select(0, ends - back)

    def encode(self, source: Rows) -> Tensor:
        return torch.cat(self._encoded(source))

    def _encoded(self, source: Rows) -> list[Tensor]:
        """The encoder's output for each row, (tokens, D)."""
        return [row for _, own in _groups(source) for row in self._encoded_together(own)]

    def _encoded_together(self, source: Rows) -> list[Tensor]:
        ids, mask = _rectangle(source)
        with self.compute_format():
            output = self.net.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return list(torch.split(from_grid(output, source), list(source.lengths)))

    def _decoded(self, rows: Rows, memory: list[Tensor] | None) -> Tensor:
        keys = None if memory is None else [len(row) for row in memory]
        parts = [
            self._decoded_together(own, None if memory is None else memory[numbers])
            for numbers, own in _groups(rows, keys)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decoded_together(self, rows: Rows, memory: list[Tensor] | None) -> Tensor:
        ids, mask = _rectangle(rows)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if memory is not None:
            from transformers.modeling_outputs import BaseModelOutput

            lengths = torch.tensor([len(row) for row in memory])
            read = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
            given = {
                "encoder_outputs": BaseModelOutput(nn.utils.rnn.pad_sequence(memory, batch_first=True)),
                "attention_mask": read,
                "decoder_input_ids": ids,
                "decoder_attention_mask": mask,
            }
        with self.compute_format():
            body = self.net.base_model if self.head_is_separable else self.net
            output = body(**given, use_cache=False, return_dict=True)
        return from_grid(output.last_hidden_state if self.head_is_separable else output.logits, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        with self.compute_format():
            scores: Tensor = self.head(hidden)
        return scores

    def start_generation(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        if self.config.decoder_start is None or self.KIND == "decoder":
            return TokenCache(len(prompts)), [list(prompt) for prompt in prompts]
        return TokenCache(len(prompts), self._encoded(Rows.of(prompts))), [[self.config.decoder_start] for _ in prompts]

    @torch.no_grad()
    def _head_gives_logits(self) -> bool:
        """True if the model's logits are head(last hidden state), with no operation between or after."""
        was_training = self.net.training
        self.net.eval()
        ids = [number % self.config.vocab_size for number in (3, 1, 4, 1, 5)]
        rows: Rows | Pairs = Rows.of([ids])
        rows = Pairs(Rows.of([ids]), rows) if self.KIND == "encoder-decoder" else rows  # type: ignore[arg-type]
        found = []
        try:
            for self.head_is_separable in (False, True):
                found.append(self.logits(self(rows)))
        except (TypeError, AttributeError, RuntimeError):  # no such body, no such output, another width
            return False
        finally:
            self.net.train(was_training)
        whole, alone = found
        rounding = 8 * torch.finfo(whole.dtype).eps * whole.abs().max()
        return whole.shape == alone.shape and bool((whole - alone).abs().max() <= rounding)


def _groups(rows: Rows, keys: Sequence[int] | None = None) -> list[tuple[slice, Rows]]:
    """Rows of similar length together, as attention has them, so that one long row doesn't widen all."""
    return [(numbers, own.rows) for numbers, own in MaskSpec(rows, causal=False, keys=keys).groups]


def _rectangle(rows: Rows) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both (B, S): padded on the right with copies of the last token."""
    lengths = torch.tensor(rows.lengths)
    return rows.ids[rows.grid], (torch.arange(rows.longest) < lengths[:, None]).long()
