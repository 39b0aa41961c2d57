"""All blocks of a decoder for one new token a row as one compiled operation (nn/ops/native/decode.cpp).

A step of generation is some 300 small operations, each of which waits for the one before and for Python. Here Python
says once, for each cache, where the weights of all blocks lie, and then calls one operation a step. Blocks that have
more than it knows (an adapter that is no low-rank update, a prefix, a module of somebody else's) are computed one by
one as ever: these are the reference, models/decoder.py and models/t5.py.
Shapes: B rows, D model width, H heads, KV heads of keys and values, Dh width of a head, C capacity of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as once
from typing import Any

import torch
from torch import Tensor, nn

from microplane.errors import notice
from microplane.nn.cache import Cache, PairCache, Rooms
from microplane.nn.layers import Linear, RMSNorm
from microplane.nn.ops import few_rows, native
from microplane.nn.ops.scratch import persistent
from microplane.nn.quantised import QuantisedLinear
from microplane.nn.relative import RelativeBias
from microplane.nn.rows import Rows

MOST = {torch.bfloat16: 128, torch.float32: 16}  # rows: of more, torch's own products are as fast
UNIT = 16  # the width of a head must be a multiple of this
ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1, "relu": 2}
NOTHING = [0] * 10  # a layer that is not there
NAMES = ("q", "k", "v", "o", "cross_q", "cross_o", "gate", "up", "down")
NORMS = ("before", "after", "cross_before", "mlp_before", "mlp_after", "q_norm", "k_norm")


class NotFusableError(Exception):
    """A block has something that the operation does not know."""


@dataclass(frozen=True)
class BlockParts:
    """One block: its linear layers and norms under the names of `NAMES` and `NORMS`, None where it has none."""

    linears: Mapping[str, nn.Module | None]
    norms: Mapping[str, nn.Module | None]
    window: int | None = None
    rope: Any = None  # the key of its angles
    relative: RelativeBias | None = None  # T5's
    sockets: Sequence[nn.Module] = ()  # which must be empty
    whole: Sequence[nn.Module] = ()  # modules that hold the others, at which nobody may look


@dataclass(frozen=True)
class StackParts:
    blocks: list[BlockParts]
    heads: int
    kv: int
    head: int
    inner: int
    activation: str
    eps: float
    scale: float
    multiplier: float = 1.0
    softcap: float = 0.0
    around_one: bool = False
    whole: bool = False  # q and k are normed before they are cut into heads


def fused_step(describe: Callable[[], StackParts], x: Tensor, rows: Rows, cache: Cache) -> FusedStep | None:
    """What computes this step, or None. It is made once for each cache: meanwhile no weight may change.

    Args:
        describe: gives the blocks; may raise NotFusableError.
        x: embeddings of the new tokens (B, D).
    """
    if not torch.is_inference_mode_enabled() or rows.longest != 1 or len(x) > MOST.get(x.dtype, 0):
        return None
    if cache.step is False or type(cache).append is not Cache.append or native.library() is None:
        return None
    if not isinstance(cache.step, FusedStep) or cache.step.dtype != x.dtype:
        cache.step = agrees() and _made(describe, x)
    return cache.step or None


def _made(describe: Callable[[], StackParts], x: Tensor) -> FusedStep | bool:
    try:
        return FusedStep(describe(), x.dtype, x.shape[1])
    except NotFusableError:
        return False


class FusedStep:
    """The weights of all blocks, as `decode_step` takes them."""

    def __init__(self, parts: StackParts, dtype: torch.dtype, width: int):
        if parts.head % UNIT or parts.activation not in ACTIVATIONS:
            raise NotFusableError
        self.parts, self.dtype, self.width = parts, dtype, width
        self.kept: list[Any] = []  # what the words point to
        with persistent():
            words = [self._block(block) for block in parts.blocks]
        self.table = torch.tensor(words)
        self.placed = 0  # the number of the rooms that the table tells
        self.kept_memory: list[list[Tensor]] = []
        self.turned: dict[Any, Tensor] = {}  # (2, B, 1, Dh/2): cosines, sines
        self.biases: list[Tensor] = []
        self.distances = 0
        numbers = parts.eps, parts.scale, parts.multiplier, parts.softcap
        self.numbers = torch.tensor(numbers, dtype=torch.float32)

    def __call__(self, x: Tensor, rows: Rows, cache: Cache, angles: dict[Any, tuple[Tensor, Tensor] | None]) -> Tensor:
        """The output of the last block, (B, D): in the memory of x. Keys and values are appended to the cache.

        Args:
            angles: of each of the blocks' `rope`, cosines and sines (B, 1, Dh/2).
        """
        parts, x = self.parts, x.contiguous()
        rooms = cache.rooms(x.new_empty(0, parts.kv, parts.head), rows)
        capacity = rooms.tensors[0].shape[2]
        self._bias(capacity)
        source, memory, longest = None, list[tuple[Tensor, Tensor]](), 0
        if isinstance(cache, PairCache):
            memory = cache.memory
            source, longest = torch.tensor(cache.source_lengths), memory[0][0].shape[2]
        if self._turn(angles) or rooms.number != self.placed:
            self._place(rooms, memory)
        shape = [len(parts.blocks), len(x), self.width, parts.inner, parts.heads, parts.kv, parts.head]
        shape += [capacity, longest, self.distances, ACTIVATIONS[parts.activation]]
        shape += [int(parts.around_one), int(parts.whole)]
        where = self.table, torch.tensor(shape), self.numbers, cache.starts(), source
        native.run("decode_step", *where, x, dtype=x.dtype)
        return x

    def _turn(self, angles: dict[Any, tuple[Tensor, Tensor] | None]) -> bool:
        """Put cosines and sines where the operation reads them; True if that is another place than before."""
        moved = False
        for rope, pair in angles.items():
            if pair is None:
                continue
            if rope not in self.turned or self.turned[rope].shape[1:] != pair[0].shape:
                self.turned[rope] = pair[0].new_empty(2, *pair[0].shape)
                moved = True
            torch.stack(pair, out=self.turned[rope])
        return moved

    def _place(self, rooms: Rooms, memory: list[tuple[Tensor, Tensor]]) -> None:
        """Say in the table where keys and values, those of the source and the angles lie."""
        self.placed = rooms.number
        self.kept_memory = [[x.contiguous() for x in pair] for pair in memory]
        places = []
        for layer, block in enumerate(self.parts.blocks):
            turned = self.turned.get(block.rope, (None, None))
            source = self.kept_memory[layer] if memory else (None, None)
            given = [*turned, *rooms.tensors[2 * layer : 2 * layer + 2], *source]
            places.append([0 if tensor is None else tensor.data_ptr() for tensor in given])
        self.table[:, -len(places[0]) :] = torch.tensor(places)

    def _block(self, block: BlockParts) -> list[int]:
        if any(type(module) is not nn.Identity for module in block.sockets) or any(map(hooked, block.whole)):
            raise NotFusableError
        words = [word for name in NAMES for word in self._linear(block.linears.get(name))]
        words += [self._norm(block.norms.get(name)) for name in NORMS]
        return [*words, 0, block.window or 0, *[0] * 6]

    def _linear(self, module: nn.Module | None) -> list[int]:
        if module is None:
            return NOTHING
        base: Any = module
        pair: tuple[Tensor, Tensor] | None = None
        if hasattr(base, "low_rank"):  # methods/adapted_linear.py
            base, pair = base.base, base.low_rank()
            if pair is None:
                raise NotFusableError
        if hooked(module) or hooked(base):
            raise NotFusableError
        stored = self._stored(base)
        bias = self._cast(base.bias)
        A, B = (None, None) if pair is None else (self._cast(pair[0]), self._cast(pair[1].t()))
        self.kept.append(stored)
        if not stored.usable:
            raise NotFusableError
        return stored.matrix(bias, A, B)

    def _stored(self, base: nn.Module) -> few_rows.Stored:
        if isinstance(base, QuantisedLinear) and base.dtype == self.dtype:
            if (stored := base.stored()) is not None:
                return stored
        elif isinstance(base, nn.Linear) and type(base) in (Linear, nn.Linear):
            return few_rows.plain(base.weight.detach().to(self.dtype).contiguous())
        raise NotFusableError

    def _cast(self, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        rounded = x.detach().to(self.dtype).contiguous()
        self.kept.append(rounded)
        return rounded

    def _norm(self, module: nn.Module | None) -> int:
        if module is None or type(module) is nn.Identity:
            return 0
        if type(module) is not RMSNorm or hooked(module) or module.eps != self.parts.eps:
            raise NotFusableError
        weight = module.weight.detach().float()
        weight = (1.0 + weight if self.parts.around_one else weight).contiguous()
        self.kept.append(weight)
        return weight.data_ptr()

    def _bias(self, capacity: int) -> None:
        """T5's biases (H, C) for each distance that the cache can hold; a block without a table has those before it."""
        first = self.parts.blocks[0].relative
        if first is None or self.distances == capacity:
            return
        self.biases.clear()
        table = first
        for block in self.parts.blocks:
            table = block.relative or table
            self.biases.append(table.of_distances(capacity).to(self.dtype).float().contiguous())
        self.distances = capacity
        words = [bias.data_ptr() for bias in self.biases]
        self.table[:, len(NAMES) * len(NOTHING) + len(NORMS)] = torch.tensor(words)


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes in or out of it."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks) > 0


_small: list[Callable[[], Any]] = []  # makes a small decoder, which is above this file


def try_on(make: Callable[[], Any]) -> None:
    """What the operation is to be tried on: `make` gives a decoder of two layers, 48 wide, in float32."""
    _small[:] = [make]


@once
def agrees() -> bool:
    """Whether it computes what the blocks do one by one, tried once on a small decoder; if not, that is told."""
    if not _small:
        return False
    with persistent():
        model = _small[0]()
    found = []
    for fused in (False, True):
        cache = Cache(2, 2)
        with torch.inference_mode():
            cache.step = False
            model(Rows.of([[1, 2, 3], [4]]), cache)
            cache.step = FusedStep(model.parts(), torch.float32, 48) if fused else False
            for token in (5, 6):
                hidden = model(Rows.of([[token], [token + 1]], starts=cache.lengths), cache)
            found.append(hidden)
    if not bool((found[0] - found[1]).abs().amax() < 1e-3):
        notice("native    the compiled step of generation is not what its parts are, and is left out: slower")
        return False
    return True
