"""What a block of a model holds while it is trained, and how long it takes: seen on one block and on two.

A model of one block and one of two, with the real widths and new weights, are given the same rows, forward and
backward, with the method attached. What the second block adds, times the number of blocks, is the model; what one
block holds beyond that is held once. Two numbers of rows part what grows with the tokens from what does not. Blocks
that are too large to be tried are tried narrower: what is held grows with the width, what is computed with its square.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from microplane.cache.entries import remembered
from microplane.cpu_memory import give_back_memory
from microplane.files import cache_dir, write_aside
from microplane.forecast.held import Held
from microplane.hardware import processor
from microplane.methods import Method
from microplane.methods.method import attach_method
from microplane.models.configs.fields import SIDES
from microplane.models.contract import Model
from microplane.models.families import family_of
from microplane.models.files.load import quantise_linears
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops import native
from microplane.nn.ops.autograd import with_gradient
from microplane.nn.ops.scratch import no_scratch
from microplane.nn.rows import Pairs, Rows
from microplane.training.activation_checkpointing import recomputed_in_backward

VERSION = 2  # of what is kept, and of all code that decides it; raise it when either changes
DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "n_layer",
    "n_layers",
)
WIDTHS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("d_model", "d_ff", "num_heads", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("encoder_attention_heads", "decoder_attention_heads", "dim", "hidden_dim", "n_heads", "pooler_hidden_size"),
    *("n_embd", "n_inner", "n_head"),
)
HEADS = ("num_attention_heads", "n_head", "n_heads")  # of families whose width is that of all heads
ACROSS_HEADS = ("hidden_size", "n_embd", "dim")
MOST_WEIGHTS = 16_000_000  # of a block that is tried as it is
MOST_TOKENS = 512  # that are tried at once, or one row
VOCABULARY = 512  # of the models that are tried: heads are another matter
REPEATS = 2


@dataclass(frozen=True)
class Line:
    """Something that grows with the tokens that are computed at once: `fixed + token * tokens`."""

    fixed: float = 0.0
    token: float = 0.0

    @classmethod
    def through(cls, tokens: tuple[int, int], few: float, many: float) -> Self:
        """Of two numbers of tokens, the larger one last, which the line always goes through."""
        token = max(0.0, many - few) / (tokens[1] - tokens[0])
        if (fixed := few - token * tokens[0]) < 0:
            return cls(0.0, many / tokens[1])
        return cls(fixed, token)

    def __call__(self, tokens: float) -> float:
        return self.fixed + self.token * tokens


@dataclass(frozen=True)
class BlockCost:
    """Bytes, and seconds for a token.

    Attributes:
        kept: of each block, from its forward pass to its backward pass.
        once: beside that, whatever the number of blocks: what is kept around them, and what the backward pass of one
            holds on its way.
        evaluated: what a forward pass alone holds, whatever the number of blocks.
        seconds: of one block, forward and backward.
    """

    kept: Line = Line()
    once: Line = Line()
    evaluated: Line = Line()
    seconds: float = 0.0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        lines = {name: Line(**values[name]) for name in ("kept", "once", "evaluated")}
        return cls(**lines, seconds=float(values["seconds"]))


def block_cost(
    fields: Mapping[str, Any],
    weights: int,
    method: Method,
    form: NumberFormat,
    row: int,
    recompute: str = "none",
) -> BlockCost:
    """Of a model that a config.json describes by `fields`; kept for the next one who asks.

    Args:
        weights: of one block.
        row: tokens of a row.
        recompute: as the knob `train.recompute`.
    """
    factor, place = _factor(weights), _place(fields, weights, method, form, row, recompute)
    with suppress(ValueError, KeyError, TypeError):  # not there, or damaged: try again
        return BlockCost.read(remembered(place))
    with torch.random.fork_rng(devices=[]):
        cost = _tried(fields, factor, method, form, row, recompute)
    give_back_memory()  # or the run that follows would hold what the models that were tried leave between its own
    with suppress(OSError):
        write_aside(place, json.dumps(asdict(cost)).encode())
    return cost


def forget_block(
    fields: Mapping[str, Any], weights: int, method: Method, form: NumberFormat, row: int, recompute: str = "none"
) -> None:
    """What `block_cost` kept, so that the next one who asks tries anew."""
    with suppress(OSError):
        _place(fields, weights, method, form, row, recompute).unlink(missing_ok=True)


def _factor(weights: int) -> int:
    """By which the widths of a block of so many weights are divided when it is tried."""
    factor = 1
    while weights / factor**2 > MOST_WEIGHTS:
        factor *= 2
    return factor


def _place(
    fields: Mapping[str, Any], weights: int, method: Method, form: NumberFormat, row: int, recompute: str
) -> Path:
    """In the cache."""
    factor = _factor(weights)
    given = _smaller(fields, 1, factor), method.name, method.model_dump(mode="json"), tuple(map(str, form))
    return cache_dir() / "blocks" / f"{_key([*given, factor, row, recompute])}.json"


def _key(parts: list[Any]) -> str:
    machine = [processor(), torch.get_num_threads(), torch.__version__, native.library() is not None]
    return hashlib.sha256(json.dumps([VERSION, *parts, machine], default=str).encode()).hexdigest()[:32]


def _tried(
    fields: Mapping[str, Any], factor: int, method: Method, form: NumberFormat, row: int, recompute: str
) -> BlockCost:
    sizes, tries = _tried_rows(row), []
    tokens = math.prod(sizes[0]), math.prod(sizes[1])
    for depth in (1, 2):
        model = _model(_smaller(fields, depth, factor), method, form)
        tries.append([_Try.of(model, *size, recompute) for size in sizes])
        del model
        gc.collect()
    one, two = tries
    kept = Line.through(tokens, *(b.kept - a.kept for a, b in zip(one, two, strict=True)))
    way = [a.peak - min(kept(n), a.kept) for n, a in zip(tokens, one, strict=True)]
    return BlockCost(
        kept=Line(kept.fixed * factor**2, kept.token * factor),
        once=_wider(Line.through(tokens, *way), factor),
        evaluated=_wider(Line.through(tokens, *(two_.evaluated for two_ in two)), factor),
        seconds=max(0.0, two[1].seconds - one[1].seconds) * factor**2 / tokens[1],
    )


def _tried_rows(row: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Twice: tokens of a row, and rows. Of a long row only one, and a short one, or trying would hold more than a run
    with one such row does."""
    if row > MOST_TOKENS:
        return (MOST_TOKENS // 2, 1), (min(row, 2 * MOST_TOKENS), 1)
    count = max(1, MOST_TOKENS // 2 // row)
    return (row, count), (row, 2 * count)


def _wider(line: Line, factor: int) -> Line:
    return Line(line.fixed * factor**2, line.token * factor)


def _smaller(fields: Mapping[str, Any], depth: int, factor: int) -> dict[str, Any]:
    """The configuration with so many blocks, their widths divided; heads keep their own width."""
    found = dict(fields) | {"vocab_size": VOCABULARY, "torch_dtype": "float32"}
    found |= {name: _smaller(fields[name], depth, factor) for name in SIDES if isinstance(fields.get(name), dict)}
    found |= {name: depth for name in DEPTHS if isinstance(fields.get(name), int)}
    if isinstance(fields.get("layer_types"), list):
        found["layer_types"] = fields["layer_types"][:depth]
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
        found |= {name: 0} if fields.get(name) is not None else {}
    if factor > 1:
        if "head_dim" not in found and "num_attention_heads" in found and "hidden_size" in found:
            found["head_dim"] = found["hidden_size"] // found["num_attention_heads"]
        narrow = {name: max(1, int(found[name]) // factor) for name in WIDTHS if found.get(name)}
        found |= narrow | _whole_heads(found, narrow)
    return found


def _whole_heads(fields: Mapping[str, Any], narrow: Mapping[str, int]) -> dict[str, int]:
    """Of narrower fields those that go with the number of heads, which the divisor may not divide (gpt2-xl has 25): the
    width has as many of each head as before, and keys and values have a number of heads that parts the others."""
    heads = next((name for name in HEADS if name in narrow), None)
    if heads is None:
        return {}
    count = narrow[heads]
    found = {name: int(fields[name]) * count // int(fields[heads]) for name in ACROSS_HEADS if name in narrow}
    pairs = narrow.get("num_key_value_heads", 1)
    kept = {"num_key_value_heads": max(n for n in range(1, pairs + 1) if count % n == 0)}
    return found | (kept if "num_key_value_heads" in narrow else {})


def _model(fields: dict[str, Any], method: Method, form: NumberFormat) -> Model:
    model: Model = family_of(fields).from_hf(fields).init_weights(0).requires_grad_(False).to(form.stored)
    model = model.to(form.device)
    model.compute = form.multiplied
    quantise_linears(model, form)
    attach_method(method, model)
    return model.train()


@dataclass(frozen=True)
class _Try:
    """Of one small model and some rows: bytes and seconds."""

    kept: float  # after the forward pass
    peak: float  # of both passes
    evaluated: float  # most of a forward pass without gradients
    seconds: float

    @classmethod
    def of(cls, model: Model, row: int, rows: int, recompute: str) -> Self:
        given = _rows(model, row, rows).to(next(model.parameters()).device)
        with recomputed_in_backward(model, recompute):
            kept, peak = _held(model, lambda: model(given))
            times = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                _backward(model(given))
                times.append(time.perf_counter() - began)
        model.zero_grad(set_to_none=True)
        with no_scratch(), torch.no_grad(), Held([*model.parameters(), *model.buffers()]) as held:
            model(given)
        return cls(kept, peak, held.peak, min(times))


def _held(model: Model, forward: Callable[[], Tensor]) -> tuple[float, float]:
    """After the forward pass, and at most; of the gradients, which others count, those are left out that are there at
    the end."""
    with no_scratch(), Held([*model.parameters(), *model.buffers()]) as held:
        y = forward()
        kept = held.now
        _backward(y)
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        peak = max(kept, held.peak - gradients)
        del y
    model.zero_grad(set_to_none=True)
    return kept, peak


def _backward(y: Tensor) -> None:
    if y.requires_grad:
        ones = torch.ones_like(y)
        torch.autograd.backward(with_gradient(y, ones))


def _rows(model: Model, row: int, rows: int) -> Rows | Pairs:
    """So many tokens in all; of pairs, half on each side."""
    if model.KIND != "encoder-decoder":
        return Rows.of([[1] * row] * rows)
    half = Rows.of([[1] * max(1, row // 2)] * rows)
    return Pairs(half, half)
