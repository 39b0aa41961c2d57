"""Selective activation recomputation: cheap operations are computed again in backward, so their outputs are not kept.

The output of a norm or an activation is kept by the product it enters, where that trains, and the scores of attention
by two more: a third of what a block keeps, for a few percent of its time. The model wraps such an operation in
`recomputed`, or, of several operations, asks `recomputing` and then calls `computed_again`. Inside the context
`selective_recompute` (around a block's forward pass) its output is dropped after the forward pass, and computed again
in backward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from microplane.nn.ops.autograd import apply, with_gradient


class _Recompute:
    """Computes a result again, once for all operations that saved it for their backward pass."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Any, ...]):
        self.function, self.inputs = function, inputs
        self.savers = self.asked = 0  # how many operations saved the result; how many have asked for it so far
        self.result: Tensor | None = None

    @torch.no_grad()
    def __call__(self) -> Tensor:
        result = self.function(*self.inputs) if self.result is None else self.result
        self.asked += 1
        self.result = result if self.asked < self.savers else None
        return result


_Outputs = dict[int, tuple[Tensor, int, _Recompute]]  # by the address of its memory: a result, its version, its maker
_local = threading.local()  # .outputs: those of the present block


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs). The function must give the same numbers each time: no randomness, no change of its inputs."""
    result = function(*inputs)
    outputs: _Outputs | None = getattr(_local, "outputs", None)
    if outputs is not None:  # the result is held until the block's end, so that nothing else gets its address
        outputs[result.data_ptr()] = result, result._version, _Recompute(function, inputs)
    return result


def recomputing() -> bool:
    """True inside the context `selective_recompute`."""
    return getattr(_local, "outputs", None) is not None


def computed_again(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), which may be several operations and draw random numbers. In backward it is called once more
    and the same ones are drawn, so that only the inputs are kept. What needs a gradient must be among them.

    torch.utils.checkpoint does it for any function; its first call imports torch's compiler, 150 MB and some seconds.
    """
    return apply(_Again, function, *inputs)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        ctx.function, ctx.state = function, torch.get_rng_state()
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = iter(ctx.saved_tensors), ctx.needs_input_grad[1:]
        inputs = [
            next(saved).detach().requires_grad_(need) if other is None else other[0]
            for other, need in zip(ctx.others, needed, strict=True)
        ]
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            y = ctx.function(*inputs)
            of = [x for x, need in zip(inputs, needed, strict=True) if need]
            found = iter(torch.autograd.grad(with_gradient(y, *gradients), of, allow_unused=True))
        return None, *(next(found) if need else None for need in needed)


@contextmanager
def selective_recompute() -> Iterator[None]:
    """Around the forward pass of a block: inside, outputs of `recomputed` are not kept, and `recomputing` is true."""
    outputs: _Outputs = {}

    def pack(tensor: Tensor) -> Tensor | tuple[_Recompute, torch.Size]:
        if (found := outputs.get(tensor.data_ptr())) is None:
            return tensor
        result, version, recompute = found
        if version != tensor._version or not _same_numbers(result, tensor):
            return tensor
        recompute.savers += 1
        return recompute, tensor.shape

    def unpack(saved: Tensor | tuple[_Recompute, torch.Size]) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved[0]().view(saved[1])

    before, _local.outputs = getattr(_local, "outputs", None), outputs
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _local.outputs = before
        outputs.clear()  # autograd keeps the hooks as long as what they packed, and with them all that they know


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and a.dtype == b.dtype and a.is_contiguous() and b.is_contiguous()
