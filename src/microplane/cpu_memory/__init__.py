"""Memory for large tensors on a CPU: a caching allocator, as torch has one for GPUs.

The C library's heap is made for programs that ask for much the same again and again. Steps of training ask for other
sizes each time, as their rows differ, and small pieces that outlive a step lie between the large ones: what was freed
does not fit what is asked for next, and the heap grows from step to step (MiniLM with LoRA: 0.70 GB after the first
step and 1.03 GB after 204, where 0.66 are needed at once). Fetching each large tensor from the system does not grow,
and costs up to half of the speed, as every page of it is cleared anew.

Here pieces that are freed are kept. The next tensor gets one that is at most a sixteenth too large, or the nearest in
size, whose pages the system hangs behind a new address, longer or shorter (`mremap`). All that is held is at most a
sixty-fourth more than tensors took at once. Smaller tensors come from the C library as before.

It is C++ against torch's own interface for allocators (c10/core/Allocator.h), compiled once, as the operations are
(`nn/ops/native`); where it cannot be, elsewhere than on Linux and with MICROPLANE_NATIVE=0, all is as torch does it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from microplane import hardware
from microplane.errors import notice
from microplane.nn.ops.native.build import CompileError, Sources, load_or_compile

LEAST = 1 << 18  # bytes of a tensor that gets a piece of its own
TORCH = Path(torch.__file__).parent
FLAGS = (
    *("-O2", "-std=c++20", "-fPIC", "-shared", f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}"),
    *(f"-Wl,-rpath,{TORCH / 'lib'}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"),
    f"-DTORCH={torch.__version__}",  # compiled anew for another one
)
SOURCES = Sources(Path(__file__).parent, FLAGS, libraries=("-lc10",))

_lock = threading.RLock()
_users = 0  # contexts that are open, in whatever threads


@dataclass(frozen=True)
class Figures:
    """Bytes of pieces that tensors lie in now, of those that are kept, and of the first at most since memory was given
    back last; and how many pieces were fetched from the system, reshaped, and taken as they were."""

    live: int
    idle: int
    most: int
    fresh: int
    reshaped: int
    reused: int


@contextmanager
def caching_allocator() -> Iterator[None]:
    """Within the context large tensors of this process lie in pieces that are kept; what is kept is given back at its
    end. Tensors may outlive it."""
    global _users
    if (library := _library()) is None:
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            library.allocator_begin(ctypes.c_int64(LEAST))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                library.allocator_end()


def can_cache() -> bool:
    """Whether there is such an allocator here."""
    return _library() is not None


def figures() -> Figures:
    """What the allocator holds; nothing where there is none."""
    values = (ctypes.c_int64 * 6)()
    if (library := _library()) is not None:
        library.allocator_figures(values)
    return Figures(*values)


def give_back_memory() -> None:
    """Hand memory that nobody uses back to the system: what is kept for tensors, and what the C library keeps."""
    if _users and (library := _library()) is not None:
        library.allocator_give_back()
    hardware.give_back_memory()


def _library() -> ctypes.CDLL | None:
    """The compiled allocator; None where it is not wanted or cannot be had, of which a notice says why once."""
    if not sys.platform.startswith("linux") or os.environ.get("MICROPLANE_NATIVE") == "0":
        return None
    with _lock:
        return _built()


@cache
def _built() -> ctypes.CDLL | None:
    try:
        return load_or_compile(SOURCES)
    except CompileError as error:
        notice(f"native    large tensors come from the C library, and long runs hold more memory: {error}")
        return None
