"""Tensors in a safetensors file, written aside and renamed; disk errors in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from microplane.errors import MicroplaneError
from microplane.files import aside
from microplane.nn.sharded import any_sharded, save_gathered


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, aside and renamed. Tensors of which other processes hold parts are gathered, see
    `save_gathered`."""
    with aside(path) as temporary, disk_errors(path):
        if any_sharded(tensors):
            save_gathered(tensors, temporary, metadata)
            return
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata)


def read_tensors(path: Path, error: type[MicroplaneError]) -> dict[str, Tensor]:
    if not path.is_file():
        raise error(f"{path} is missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise error(f"{path} is truncated, or is not a safetensors file: {problem}. Fetch or make it again") from None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk, while `path` is written, as OSError; safetensors tells of it by an error of its own."""
    try:
        yield
    except SafetensorError as error:
        if not (found := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
