"""Operations in C++, compiled for this machine's processor when the first is needed: half a second, then remembered.

torch's own are single passes over memory; what is fused here reads and writes once. Every function has its plain
reference in torch beside the place that calls it, which does the work where nothing can be compiled, elsewhere than on
a CPU, and with MICROPLANE_NATIVE=0. The sources take addresses and sizes and need no header of torch's; the threads are
torch's own, as its OpenMP library is loaded already.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache

import torch
from torch import Tensor

from microplane.errors import notice
from microplane.nn.ops.native.build import CompileError, load_or_compile

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
SMALL = 1 << 14  # numbers that one thread passes over before another is awake
SLOWER = (
    "Attention, norms, dropout, gated activations, cross-entropy and the products of int8 and nf4 weights are computed "
    "by torch's own operations, which is slower"
)

_lock = threading.Lock()


def usable(*tensors: Tensor | None) -> bool:
    """Whether there are compiled operations for these: contiguous, on the CPU; None stands for nothing."""
    given = [tensor for tensor in tensors if tensor is not None]
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in given) and library() is not None


def fusable(x: Tensor, *others: Tensor | None) -> bool:
    """The same, and x is in one of the formats that operations are compiled for."""
    return x.dtype in SUFFIX and usable(x, *others)


def run(
    name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype | None = None, threads: int | None = None
) -> None:
    """Call one operation, if it has several formats that of `dtype`.

    Tensors go by their address (None: no address), and the number of threads comes last, torch's if it is not given.
    """
    function = getattr(library(), name if dtype is None else f"{name}_{SUFFIX[dtype]}")
    function(*map(_argument, arguments), ctypes.c_int64(threads or torch.get_num_threads()))


def threads_for(numbers: int) -> int:
    """How many threads a single pass over so many numbers is worth: waking them takes longer than a small one."""
    return 1 if numbers < SMALL else torch.get_num_threads()


def has(question: str) -> bool:
    """What an operation without arguments says of this processor: whether others are there."""
    return (found := library()) is not None and bool(getattr(found, question)())


def _argument(value: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


def library() -> ctypes.CDLL | None:
    """The compiled operations; None where they are not wanted or cannot be had, of which a notice says why once."""
    if os.environ.get("MICROPLANE_NATIVE") == "0":
        return None
    with _lock:  # so that two threads neither compile twice nor tell twice
        return _built()


@cache
def _built() -> ctypes.CDLL | None:
    try:
        return load_or_compile()
    except CompileError as error:
        notice(
            f"native    compiled operations are off: {error}. {SLOWER}. To have them, see to a C++17 compiler with "
            "OpenMP (CXX names another one than c++); to be told no more, set MICROPLANE_NATIVE=0"
        )
        return None
