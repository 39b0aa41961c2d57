"""Tensors of which each process holds a part: FSDP2's (`torch.distributed.fsdp.fully_shard`), cut along their first
dimension into as many runs of rows as there are processes (arXiv 1910.02054, stage 3; 2304.11277).

All else in the package reads and fills tensors by these functions, which leave an ordinary tensor as it is. What
gathers is called by all processes, in the same order, or waits for ever.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

FORMATS = {  # as safetensors names them
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it. torch's code for that takes seconds to import, and is not needed to
    know that nobody has."""
    there = sys.modules.get("torch.distributed.tensor")
    return there is not None and isinstance(tensor, there.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, on the same memory."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process; gathers."""
    return cast(Tensor, cast(Any, tensor.detach()).full_tensor()) if is_sharded(tensor) else tensor


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor: of a sharded one, the rows that this process holds."""
    local(target).copy_(value[_rows(target)] if is_sharded(target) else value)


def shared_as(like: Tensor, value: Tensor) -> Tensor:
    """A whole value cut as another tensor of its shape is, on its device."""
    if not is_sharded(like) or value.shape != like.shape:
        return value.to(like.device)
    from torch.distributed.tensor import DTensor

    own, cut = value[_rows(like)].clone().to(like.device), cast(Any, like)
    made: Tensor = DTensor.from_local(own, cut.device_mesh, cut.placements, shape=like.shape, stride=like.stride())
    return made


def _rows(tensor: Tensor) -> slice:
    """Of a sharded tensor, those that lie here."""
    mesh = cast(Any, tensor).device_mesh
    each = -(-len(tensor) // mesh.size())
    start = min(len(tensor), each * mesh.get_local_rank())
    return slice(start, start + len(local(tensor)))


def reshard(model: nn.Module) -> None:
    """Let go of what the last forward pass has gathered: parameters are sharded tensors again."""
    if (release := getattr(model, "reshard", None)) is not None:
        release()


def save_gathered(tensors: Mapping[str, Tensor], file: Path | None, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of tensors that are gathered one after the other, so that none holds more than one of them.

    Args:
        file: of the process that writes; None on the others, which hand in their parts.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # as safetensors orders them
    if file is None:
        for name in order:
            whole(tensors[name])
        return
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": FORMATS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(told)) + told)
        for name in order:
            numbers = whole(tensors[name]).detach().cpu().contiguous()
            out.write(numbers.reshape(-1).view(torch.uint8).numpy().data)


def any_sharded(tensors: Mapping[str, Tensor]) -> bool:
    return any(is_sharded(tensor) for tensor in tensors.values())
