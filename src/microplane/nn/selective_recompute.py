"""Results that are cheap to make are not kept for backward, but made again from their inputs.

The output of a norm or an activation is kept by the product it enters, and the scores of attention by two more: half of
what a block keeps, for a few percent of its time. Which results those are is said where they are made, by `remade` and
`unkept`; that they are made again is said by `remaking` around a block. Elsewhere all three do nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class _Maker:
    """Makes a result again, once for all who have kept it."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Any, ...]):
        self.function, self.inputs = function, inputs
        self.keepers = self.asked = 0
        self.result: Tensor | None = None

    @torch.no_grad()
    def __call__(self) -> Tensor:
        result = self.function(*self.inputs) if self.result is None else self.result
        self.asked += 1
        self.result = result if self.asked < self.keepers else None
        return result


_local = threading.local()  # .made: results of the present block by their address, with version and maker


def remade(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), which must give the same numbers each time."""
    result = function(*inputs)
    made = getattr(_local, "made", None)
    if made is not None:  # the result is held until the block's end, so that nothing else gets its address
        made[result.data_ptr()] = result, result._version, _Maker(function, inputs)
    return result


def unkept(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), of which only the inputs are kept; dropout draws the same numbers again."""
    if getattr(_local, "made", None) is None:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)


@contextmanager
def remaking() -> Iterator[None]:
    """Around the forward pass of a block."""
    made: dict[int, tuple[Tensor, int, _Maker]] = {}

    def pack(tensor: Tensor) -> Tensor | tuple[_Maker, torch.Size]:
        if (found := made.get(tensor.data_ptr())) is None:
            return tensor
        result, version, maker = found
        if version != tensor._version or not _same_numbers(result, tensor):
            return tensor
        maker.keepers += 1
        return maker, tensor.shape

    def unpack(kept: Tensor | tuple[_Maker, torch.Size]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[0]().view(kept[1])

    before, _local.made = getattr(_local, "made", None), made
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _local.made = before


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and a.dtype == b.dtype and a.is_contiguous() and b.is_contiguous()
