"""Writing with a model of transformers: its own cache objects, kept for runs of rows that are computed together.

    B  rows of a run       S  tokens of the longest of them

What a family keeps of the tokens so far (keys and values, windows of them, recurrent states) is made, lengthened and
named by transformers' own functions, as in its `generate`. Rows of unequal length are padded on the left, as there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from microplane.device import put
from microplane.models.external.together import Together, groups, in_order
from microplane.nn.cache import Cache
from microplane.nn.rows import Rows

KEPT = ("past_key_values", "cache", "cache_params", "state")  # as families call what they keep; since 5.24 `cache`


class TokenCache(Cache):
    """The rows' tokens instead of keys and values; of an encoder-decoder also the encoder's output. For families whose
    own cache does not give what they give without: each new token computes its whole row again."""

    rows_can_join: ClassVar[bool] = False

    def __init__(self, batch: int, memory: list[Tensor] | None = None):
        super().__init__(0, batch)
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.memory = memory  # (tokens of the source, width) of each row

    def extend(self, rows: Rows) -> Rows:
        """Append new tokens. Returns the rows from their start."""
        for held, new in zip(self.rows, torch.split(rows.ids, list(rows.lengths)), strict=True):
            held.extend(new.tolist())
        self.advance(rows)
        return Rows.of(self.rows).to(rows.ids.device)

    def select(self, indices: Sequence[int]) -> None:
        super().select(indices)
        self.rows = [list(self.rows[index]) for index in indices]
        self.memory = None if self.memory is None else [self.memory[index] for index in indices]


@dataclass
class Run:
    """Rows that share a cache."""

    numbers: list[int]  # of its rows among all rows
    ids: Tensor  # (B, S) all tokens so far
    given: dict[str, Any]  # what the model is called with, its cache among it


class StateCache(Cache):
    """transformers' own cache objects.

    Args:
        together: which rows may share one.
        memory: of an encoder-decoder, the encoder's output of each row, (tokens of the source, width).
    """

    rows_can_join: ClassVar[bool] = False

    def __init__(self, batch: int, together: Together, memory: list[Tensor] | None = None):
        super().__init__(0, batch)
        self.together, self.memory = together, memory
        self.runs: list[Run] = []

    def select(self, indices: Sequence[int]) -> None:
        if list(indices) == list(range(len(self.lengths))):
            return
        super().select(indices)
        for run in list(self.runs):
            place = {number: own for own, number in enumerate(run.numbers)}
            kept = [(new, place[old]) for new, old in enumerate(indices) if old in place]
            run.numbers = [new for new, _ in kept]
            if self.together is Together.ALONE:  # a copy has a cache of its own
                self.runs += [Run([new], run.ids, copy.deepcopy(run.given)) for new, _ in kept[1:]]
                run.numbers = [new for new, _ in kept[:1]]
            elif kept:
                chosen = put(torch.tensor([own for _, own in kept]), run.ids.device)
                run.ids = run.ids.index_select(0, chosen)
                run.given = {name: _selected(value, chosen) for name, value in run.given.items()}
        self.runs = [run for run in self.runs if run.numbers]


def _selected(value: Any, chosen: Tensor) -> Any:
    """The rows `chosen` of whatever a model is called with."""
    if isinstance(value, Tensor):
        return value.index_select(0, chosen)
    if "batch_select_indices" in vars(type(value)):  # a family's own cache, with more than keys and values
        value.batch_select_indices(chosen)
        return value
    if callable(reorder := getattr(value, "reorder_cache", None)):
        reorder(chosen)
        return value
    if isinstance(value, dict):  # the encoder's output
        return type(value)(**{name: _selected(part, chosen) for name, part in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_selected(part, chosen) for part in value)
    return value


def extend(net: Any, body: nn.Module, cache: StateCache, rows: Rows) -> list[Tensor]:
    """Append tokens to the rows of a cache. Returns what `body` gives of the new ones, (tokens, ...) for each row.

    Args:
        body: `net`, or the model in it without its head.
    """
    first = not cache.runs
    if first:
        keys = None if cache.memory is None else [len(row) for row in cache.memory]
        for numbers, own in groups(rows, cache.together, keys):
            memory = None if cache.memory is None else [cache.memory[number] for number in numbers]
            cache.runs.append(_begun(net, own, numbers, memory))
    else:
        assert set(rows.lengths) == {1}, "one token for each row"
        for run in cache.runs:
            chosen = put(torch.tensor(run.numbers), rows.ids.device)
            run.ids = torch.cat([run.ids, rows.ids[chosen][:, None]], 1)
    found = []
    for run in cache.runs:
        output = _step(net, body, run, first)
        lengths = [rows.lengths[number] for number in run.numbers]
        found.append((run.numbers, [row[len(row) - n :] for row, n in zip(output, lengths, strict=True)]))
    cache.advance(rows)
    return in_order(found)


def _begun(net: Any, rows: Rows, numbers: list[int], memory: list[Tensor] | None) -> Run:
    lengths = rows.sizes
    left = torch.arange(rows.longest, device=lengths.device)[None] - rows.longest
    column = left + lengths[:, None]  # below 0: left of the row
    ids, mask = rows.ids[(rows.last - lengths + 1)[:, None] + column.clamp(min=0)], (column >= 0).long()
    given: dict[str, Any] = {"use_cache": True}
    if memory is not None:
        from transformers.modeling_outputs import BaseModelOutput

        given["attention_mask"] = Rows.of_lengths(tuple(map(len, memory)), ids.device).is_token.long()
        given["encoder_outputs"] = BaseModelOutput(nn.utils.rnn.pad_sequence(memory, batch_first=True))
        assert mask.all(), "each answer begins with one token"
        return Run(numbers, ids, given)
    if "position_ids" in inspect.signature(net.forward).parameters:
        given["position_ids"] = column.clamp(min=0)
    if not mask.all():
        given["attention_mask"] = mask
    return Run(numbers, ids, given)


def _step(net: Any, body: nn.Module, run: Run, first: bool) -> Tensor:
    """What the model gives of the newest tokens of a run: (B, new tokens, ...)."""
    pair = bool(net.config.is_encoder_decoder)
    inputs = net.prepare_inputs_for_generation(
        run.ids, next_sequence_length=None if first else 1, is_first_iteration=first, **run.given
    )
    known = inspect.signature(body.forward).parameters
    output = body(**{name: x for name, x in inputs.items() if name in known and x is not None}, return_dict=True)
    run.given = net._update_model_kwargs_for_generation(output, run.given, is_encoder_decoder=pair)
    if not any(run.given.get(name) is not None for name in KEPT):
        raise ValueError("this model keeps nothing of the tokens so far")
    made: Tensor = output.logits if body is net else output.last_hidden_state
    return made
