"""Operations in C++, compiled for this machine's processor when the first is needed: half a second, then remembered.

torch's own are single passes over memory; what is fused here reads and writes once. Every function has its plain
reference in torch beside the place that calls it, which does the work where nothing can be compiled, elsewhere than on
a CPU, and with MICROPLANE_NATIVE=0. The sources take addresses and sizes and need no header of torch's; the threads are
torch's own, as its OpenMP library is loaded already.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from microplane.files import aside, cache_dir
from microplane.hardware import processor

SOURCES = Path(__file__).parent
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-strict-aliasing"),  # infinities must work
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
PATIENCE = 120.0  # seconds for the compiler

_lock = threading.Lock()


def usable(*tensors: Tensor | None) -> bool:
    """Whether there are compiled operations for these: contiguous, on the CPU; None stands for nothing."""
    given = [tensor for tensor in tensors if tensor is not None]
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in given) and library() is not None


def fusable(x: Tensor, *others: Tensor | None) -> bool:
    """The same, and x is in one of the formats that operations are compiled for."""
    return x.dtype in SUFFIX and usable(x, *others)


def run(name: str, *arguments: Tensor | int | float | None, dtype: torch.dtype | None = None) -> None:
    """Call one operation, if it has several formats that of `dtype`.

    Tensors go by their address (None: no address), and the number of threads comes last.
    """
    function = getattr(library(), name if dtype is None else f"{name}_{SUFFIX[dtype]}")
    function(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


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
    """The compiled operations; None where they are not wanted or cannot be had."""
    return None if os.environ.get("MICROPLANE_NATIVE") == "0" else _built()


@cache
def _built() -> ctypes.CDLL | None:
    with _lock, suppress(OSError, subprocess.SubprocessError):
        compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
        if compiler is None:
            return None
        path = cache_dir() / "native" / f"{_key(compiler)}.so"
        if not path.is_file():
            with aside(path) as temporary:
                sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
                command = [compiler, *FLAGS, *sources, "-o", str(temporary)]
                subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        return ctypes.CDLL(str(path))
    return None


def _key(compiler: str) -> str:
    """What the result depends on: the sources, the flags, the compiler and the processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=PATIENCE).stdout
    digest = hashlib.sha256(f"{FLAGS} {processor()}".encode() + version)
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]
