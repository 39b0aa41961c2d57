"""How much memory and time a run's training takes, from its configuration, shapes and rows alone.

What follows from shapes is exact (weights, gradients, the optimizer's state). What blocks hold and how long they take
is tried on one block and on two (blocks.py); of models so small that it hardly counts, a published formula is taken.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import psutil
import torch
from torch import nn

from microplane.config.knobs import TrainKnobs
from microplane.cpu_memory import can_cache, give_back_memory
from microplane.forecast.at_once import AtOnce, Before
from microplane.forecast.blocks import BlockCost, Line, block_cost, forget_block
from microplane.forecast.machine import Rates
from microplane.methods import Method, make_method, trainable_parameters
from microplane.models.contract import Model
from microplane.models.files.load import quantise_linears
from microplane.models.heads import meta_copy
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops.linear_cross_entropy import positions_at_once
from microplane.training.adamw_8bit import PART
from microplane.training.context import KEPT_PRODUCTS, leaves_holes

MOMENTS = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0}
"""Bytes of optimizer state for each weight that trains, at least."""
PASSES = {"adamw": 28, "adamw_8bit": 60, "adafactor": 16}
"""Bytes that a step of the optimizer reads and writes for each of them; in 8 bits not measured yet."""
WORKING = {"adamw": 0, "adamw_8bit": 25, "adafactor": 4}
"""Bytes for each number of the tensor that its step is just at; in 8 bits of a part of it."""
SMALL = 0.02  # of the process: blocks that hold less are not tried
MAPPED = 32 << 20  # bytes: a larger piece is no part of glibc's heap, however much of that is free
# What a process holds beside tensors, as the runs of benchmarks/forecast.py had it:
LIBRARIES = 60_000_000  # bytes that training loads beside what is there before: a third of it pages of libraries
LIBRARIES_ALONE = 40_000_000  # the same with the caching allocator: without what the C library keeps
COMPILER = 72_000_000  # of torch's compiler, which torch.utils.checkpoint imports with its first call (whole blocks)
PRODUCTS = 30_000_000  # the same, of products with a quantised weight
LOADED = 0.06  # of the base: left behind by reading it
HEAP = 0.35  # of what blocks keep or compute anew, and of one where all are frozen: holes of the heap between pieces
CACHED = 0.03  # the same with the caching allocator: pieces that are larger than what lies in them
NO_HEAP = 0.12  # the same where large pieces are no part of it
PASSED = 0.15  # of what is computed before the first step: the same
COMPILED_BYTES = 600_000  # of a product in bfloat16 that oneDNN compiled for its shape
SHAPES = 16  # of them in each size of a micro-batch
PROBED = 128  # positions whose logits are compared before and after saving


@dataclass(frozen=True)
class TrainingBytes:
    """What weights that train bring with them, in bytes.

    Attributes:
        added: of weights that stand beside the base's own; none where these themselves train.
        disk: of the run's folder: the adapter, and two checkpoints beside each other.
    """

    added: int
    gradients: int
    optimizer: int
    disk: int

    @classmethod
    def of(cls, method: Method, trained: int, optimizer: str) -> Self:
        """Of so many weights, all in float32."""
        state = MOMENTS[optimizer] * trained
        added = 0 if method.trains == "weights" else 4 * trained
        return cls(added, 4 * trained, state, 4 * trained + 2 * (4 * trained + state))


@dataclass(frozen=True)
class Process:
    """The process that trains, before it has a model, and before any block is tried.

    Attributes:
        size: bytes.
        compiler: whether torch's compiler is among them.
    """

    size: int
    compiler: bool = False

    @classmethod
    def now(cls) -> Self:
        give_back_memory()
        return cls(psutil.Process().memory_info().rss, "torch._dynamo" in sys.modules)


@dataclass(frozen=True)
class Forecast:
    """Of the training of a run; sizes in bytes, of the process that trains.

    Attributes:
        trainable: weights that train.
        process: Python, torch and the compiled operations.
        activations: what is held of the tokens that are computed at once, gradients on their way and the loss with it.
        disk: of the run's folder: the adapter and the checkpoints beside each other.
        seconds_per_1000_tokens: of a step; None where the machine was not measured, or blocks not tried.
    """

    trainable: int
    process: int
    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    disk: int
    seconds_per_1000_tokens: float | None = None

    @property
    def peak_memory_bytes(self) -> int:
        return self.process + self.base + self.adapter + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Shapes:
    """A model on the meta device: `plain` as it is, `attached` with a method.

    Args:
        fields: of its config.json.
    """

    fields: dict[str, Any]
    plain: Model
    attached: Model
    method: Method
    form: NumberFormat

    @cached_property
    def base_bytes(self) -> int:
        """What the model holds without the method."""
        return base_bytes(self.plain, self.form)

    @property
    def computed(self) -> int:
        """Blocks that train, or that something trains below; the others are computed once, and read again."""
        return max(0, int(self.plain.config.num_layers) - self.attached.frozen)

    @cached_property
    def largest(self) -> int:
        """Numbers of the largest tensor that trains."""
        return max((p.numel() for p in self.attached.parameters() if p.requires_grad), default=0)

    @cached_property
    def mapped(self) -> int:
        """Bytes of those gradients that are no part of the heap, and find no room in it; with the caching allocator all
        find it."""
        if can_cache():
            return 0
        sizes = (4 * p.numel() for p in self.attached.parameters() if p.requires_grad)
        return sum(size for size in sizes if size >= MAPPED)

    @property
    def block_weights(self) -> int:
        """Weights of one block, on average."""
        return _in_blocks(self.plain) // max(1, self.plain.blocks)


def forecast(
    shapes: Shapes, at_once: AtOnce, knobs: TrainKnobs, process: Process, rates: Rates | None, always: bool = False
) -> Forecast:
    """Of a run's training.

    Args:
        process: that it happens in.
        rates: of this machine; without them there is no time.
        always: try the blocks, however little they hold.
    """
    method = shapes.method
    trained = trainable_parameters(shapes.attached)
    needs = TrainingBytes.of(method, trained, knobs.optimizer)
    cost = _cost(shapes, at_once, knobs, process.size, always)
    base = shapes.base_bytes
    seen = cost or _by_formula(shapes)
    training = _held(shapes, seen, at_once, needs.gradients, knobs.optimizer)
    before = (1 + PASSED) * _before(shapes, seen, at_once.before)
    later = needs.added + needs.gradients + needs.optimizer  # not there yet before the first step
    held = max(training, before - later)
    whole = cost if knobs.recompute == "none" else _cost(shapes, at_once, knobs, process.size, always, "none")
    held += _lost(shapes, (whole or _by_formula(shapes)).kept(at_once.tokens), at_once, knobs, process.compiler)
    seconds = None if rates is None or cost is None else _seconds(shapes, cost, at_once, knobs, trained, rates)
    return Forecast(
        trainable=trained,
        process=process.size,
        base=base,
        adapter=needs.added,
        gradients=needs.gradients,
        optimizer=needs.optimizer,
        activations=math.ceil(held),
        disk=needs.disk,
        seconds_per_1000_tokens=seconds,
    )


def _cost(
    shapes: Shapes, at_once: AtOnce, knobs: TrainKnobs, process: int, always: bool, recompute: str | None = None
) -> BlockCost | None:
    """Of a block; None of one that hardly counts.

    Args:
        recompute: instead of the knob's.
    """
    formula, before = _by_formula(shapes), at_once.before
    read = max(before.filled, before.read, at_once.tokens if shapes.attached.frozen else 0)
    most = max(formula.kept(at_once.tokens) * shapes.computed, formula.evaluated(read))
    if not always and most < SMALL * process:
        return None
    return block_cost(*_tried(shapes), shapes.form, at_once.row, recompute or knobs.recompute)


def _tried(shapes: Shapes) -> tuple[dict[str, Any], int, Method]:
    """The block that is tried: fields, weights, and its method."""
    # above a boundary all of a block trains, as in full fine-tuning; one or two blocks have no boundary
    whole = shapes.attached.frozen or shapes.method.counts_blocks
    return shapes.fields, shapes.block_weights, make_method({"name": "full"}) if whole else shapes.method


def forget_blocks(shapes: Shapes, at_once: AtOnce, knobs: TrainKnobs) -> None:
    """So that the next forecast of such a run tries its blocks anew."""
    for recompute in {knobs.recompute, "none"}:
        forget_block(*_tried(shapes), shapes.form, at_once.row, recompute)


def _by_formula(shapes: Shapes) -> BlockCost:
    """Of a block, what it keeps at most for a token: arXiv 2205.05198, equation 2, without scores of attention."""
    token = 17 * shapes.form.dtype.itemsize * shapes.plain.config.hidden_size
    return BlockCost(kept=Line(0, token), once=Line(0, token), evaluated=Line(0, token))


def _held(shapes: Shapes, cost: BlockCost, at_once: AtOnce, gradients: int, optimizer: str) -> float:
    """The most beside weights, gradients and the optimizer's state."""
    kept, largest = cost.kept(at_once.tokens), shapes.largest
    # When the backward pass begins there are no gradients yet, but those of a micro-batch before it; and at its end all
    # of them and one block, and of a later micro-batch a tensor's new gradient beside the one that it is added to.
    # Of gradients only small ones find room in what the heap has left of that.
    there, again = (shapes.mapped, 0) if at_once.parts == 1 else (gradients, 4 * largest)
    begin, end = shapes.computed * kept - gradients + there, kept + again
    training = (max(begin, end) + cost.once(at_once.tokens)) if shapes.computed else 0.0
    evaluating = cost.evaluated(at_once.evaluated) - gradients
    frozen, kept_features = shapes.attached.frozen, at_once.before.vectors
    below = cost.evaluated(at_once.tokens) - gradients if frozen and not kept_features else 0.0  # of frozen blocks
    passing = max(0.0, training, evaluating, below) + _features(shapes, at_once.before)
    working = _stepping(optimizer, largest)
    # beside the heap the larger of what the head and the step take there, or else in its room
    if working >= MAPPED and not can_cache():
        return passing + max(_table(shapes), working) + _logits(shapes, at_once)
    return max(passing + _table(shapes), working) + _logits(shapes, at_once)


def _before(shapes: Shapes, cost: BlockCost, before: Before) -> float:
    """The most before the first step, beside the base."""
    filling = cost.evaluated(before.filled) + _features(shapes, before)
    plain, form = shapes.plain, shapes.form
    if not before.answers:
        return filling
    config, size = plain.config, form.dtype.itemsize
    width = getattr(config, "num_kv_heads", 0) * getattr(config, "head_dim", 0) or config.hidden_size
    cached = 2 * int(config.num_layers) * width * size * before.cached
    logits = int(config.vocab_size) * (size + 4) * before.answers
    return max(filling, cached + cost.evaluated(before.read) + logits)


def _features(shapes: Shapes, before: Before) -> int:
    """Of the files of features, which are mapped: a page that was read is the process's."""
    return int(before.vectors * shapes.plain.config.hidden_size * shapes.form.dtype.itemsize)


def _stepping(optimizer: str, largest: int) -> float:
    """What the optimizer's step works with, when what was kept for the backward pass is gone.

    Args:
        largest: numbers of the largest tensor that trains.
    """
    return float(WORKING[optimizer] * (min(PART, largest) if optimizer == "adamw_8bit" else largest))


def _lost(shapes: Shapes, block: float, at_once: AtOnce, knobs: TrainKnobs, compiler_there: bool) -> float:
    """What comes to the process beside the tensors of a step: libraries, what reading leaves behind, holes of the heap,
    and products compiled for their shape.

    Args:
        block: what one block keeps where nothing is computed anew.
    """
    plain, form = shapes.plain, shapes.form
    probed = 4 * PROBED * plain.config.vocab_size if plain.task_head is None else 0
    compiler = COMPILER if knobs.recompute == "blocks" and not compiler_there else 0
    compiled = COMPILED_BYTES * min(KEPT_PRODUCTS, SHAPES * at_once.sizes) if form.dtype == torch.bfloat16 else 0
    process = probed + compiled + compiler
    if can_cache():
        process, share = process + LIBRARIES_ALONE, CACHED
    else:
        process += LIBRARIES + LOADED * shapes.base_bytes + (PRODUCTS if form.quantised else 0)
        share = HEAP if leaves_holes(at_once.row, form.dtype, knobs.recompute) else NO_HEAP
    frozen = shapes.attached.frozen and not at_once.before.vectors  # computed one after the other, in the same room
    return process + share * block * max(shapes.computed, 1 if frozen else 0)


def _logits(shapes: Shapes, at_once: AtOnce) -> int:
    """Of the loss over the vocabulary, made in parts, in memory that stays from the first part to the run's end."""
    plain, form = shapes.plain, shapes.form
    if plain.task_head is not None:
        return 0
    size, wide = positions_at_once(plain.config.vocab_size, form.dtype)
    most = max(at_once.trained, at_once.evaluated * at_once.trained // at_once.tokens)
    return int(min(size, most) * plain.config.vocab_size * (form.dtype.itemsize + (4 if wide else 0)))


def _table(shapes: Shapes) -> int:
    """Of the head's weight, beside itself: as the product takes it, and of one that trains a second gradient."""
    plain, form = shapes.plain, shapes.form
    if plain.task_head is not None:
        return 0
    weight: int = plain.config.vocab_size * plain.config.hidden_size
    trains = any(p.requires_grad for p in shapes.attached.parameters() if p.numel() == weight)
    cast = form.dtype.itemsize * weight if form.stored != form.dtype else 0
    return cast + (4 * weight if trains else 0)  # of a tied one two gradients are added up


def _seconds(shapes: Shapes, cost: BlockCost, at_once: AtOnce, knobs: TrainKnobs, trained: int, rates: Rates) -> float:
    """Of 1,000 tokens."""
    plain, form = shapes.plain, shapes.form
    blocks = 1000 * cost.seconds * shapes.computed
    products = 0 if plain.task_head is not None else 2 * 2 * plain.config.vocab_size * plain.config.hidden_size
    head = 1000 * at_once.trained / at_once.tokens * products / rates.products(form.dtype)
    optimizer = 1000 / at_once.step * PASSES[knobs.optimizer] * trained / rates.copy
    return blocks + head + optimizer


def _in_blocks(plain: nn.Module) -> int:
    return sum(p.numel() for name, p in plain.named_parameters() if "layers." in name)


def exact_bytes(shapes: Shapes, knobs: TrainKnobs) -> int:
    """What a run's weights, gradients and optimizer's state take: all of it that no block has to be tried for."""
    needs = TrainingBytes.of(shapes.method, trainable_parameters(shapes.attached), knobs.optimizer)
    return shapes.base_bytes + needs.added + needs.gradients + needs.optimizer


def base_bytes(plain: Model, form: NumberFormat) -> int:
    """What a model on the meta device holds in a format, its linears quantised where the format says so."""
    if form.quantised is not None:
        with torch.device("meta"):
            quantise_linears(plain := meta_copy(plain), form)
    wide = sum(p.numel() for p in plain.parameters()) * form.stored.itemsize
    return wide if form.quantised is None else wide + sum(part.nbytes for part in plain.buffers())
