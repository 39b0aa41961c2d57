"""Scratch memory: buffers for intermediate results, used again by each call, as new memory costs more than arithmetic.

Whatever outlives the call that made it (a scratch buffer, a cached table) is made in `persistent`: a tensor made in
inference mode could not be used in training later in the same process.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_local = threading.local()


@contextmanager
def persistent() -> Iterator[None]:
    """Inside, new tensors are ordinary ones without a gradient, also if the caller is in `torch.inference_mode`."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def scratch_buffer(use: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `shape`, not initialised. Its memory is overwritten by the next call for the same use.

    Each thread has its own memory for each use, format and device, which grows to the largest size asked for.
    """
    buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = _local.__dict__.setdefault("buffers", {})
    size, key = math.prod(shape), (use, dtype, device)
    if key not in buffers or buffers[key].numel() < size:
        buffers.pop(key, None)  # freed before the larger one is made
        with persistent():
            buffers[key] = torch.empty(size, dtype=dtype, device=device)
    return buffers[key][:size].view(*shape)


@contextmanager
def no_scratch() -> Iterator[None]:
    """Inside, nothing is there yet that could be used again, and what is made is given back at the end."""
    before = _local.__dict__.pop("buffers", {})
    try:
        yield
    finally:
        _local.buffers = before
