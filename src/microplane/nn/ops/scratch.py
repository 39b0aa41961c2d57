"""Memory for what is used at once and not kept: new memory would cost more than the arithmetic."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_local = threading.local()


def room(use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of `shape`, not filled, in memory that the next call for the same use overwrites.

    Each thread has its own, which grows to the largest that was asked for.
    """
    rooms: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("rooms", {})
    wanted, key = math.prod(shape), (use, dtype)
    if key not in rooms or rooms[key].numel() < wanted:
        rooms.pop(key, None)  # before the larger one is made
        rooms[key] = torch.empty(wanted, dtype=dtype)
    return rooms[key][:wanted].view(*shape)
