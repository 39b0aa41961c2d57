"""How fast this machine is: measured once, in a few seconds, and kept for whoever plans on it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from microplane.cache.entries import remembered
from microplane.files import cache_dir, write_aside
from microplane.hardware import processor

SECONDS = 1.0  # for each rate, at most: five of them
PRODUCT = (2048, 576, 1536)  # (tokens, in, out): of a block of a small model
COPIED = 64 << 20  # bytes: more than caches hold
SMALL = 64  # numbers of a tensor with which an operation takes no time but its own


@dataclass(frozen=True)
class Rates:
    """Medians on the threads that torch has.

    Attributes:
        float32, bfloat16, int8: operations of a product in a second; two for each number multiplied. None where torch
            does not have it.
        copy: bytes in a second, read and written.
        overhead: seconds that an operation takes however small it is.
    """

    float32: float
    bfloat16: float
    int8: float | None
    copy: float
    overhead: float

    def products(self, dtype: torch.dtype) -> float:
        return self.bfloat16 if dtype == torch.bfloat16 else self.float32

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None where there are none."""
        with suppress(TypeError, KeyError):
            return cls(**remembered(path)["rates"])
        return None


def known() -> Rates | None:
    """The rates of this machine, if they were ever measured."""
    return Rates.read(_place())


def measured(refresh: bool = False) -> Rates:
    """The rates of this machine, measured now if they never were: in five seconds, or as long as slow products take."""
    if not refresh and (found := known()) is not None:
        return found
    tokens, width, out = PRODUCT
    x, w = torch.randn(tokens, width), torch.randn(width, out)
    flops = 2.0 * tokens * width * out
    source, target, one = torch.zeros(COPIED // 4), torch.zeros(COPIED // 4), torch.zeros(SMALL)
    rates = Rates(
        float32=flops / _median(lambda: torch.mm(x, w)),
        bfloat16=flops / _median(_product(x.bfloat16(), w.bfloat16())),
        int8=_int8(x, w, flops),
        copy=2 * COPIED / _median(lambda: target.copy_(source)),
        overhead=_median(lambda: one.add(1.0)),
    )
    with suppress(OSError):  # a cache that cannot be written only costs the measurement again
        write_aside(_place(), json.dumps({"machine": fingerprint(), "rates": asdict(rates)}).encode())
    return rates


def _product(x: Tensor, w: Tensor) -> Callable[[], Any]:
    return lambda: torch.mm(x, w)


def _int8(x: Tensor, w: Tensor, flops: float) -> float | None:
    codes, weight = (torch.clamp(32 * one, -127, 127).to(torch.int8) for one in (x, w))
    try:
        return flops / _median(lambda: torch._int_mm(codes, weight))
    except RuntimeError:
        return None


def _median(do: Callable[[], Any]) -> float:
    """Seconds that it takes; the first time does not count, unless it takes all of `SECONDS` by itself."""
    began = time.perf_counter()
    do()
    if (first := time.perf_counter() - began) > SECONDS:
        return first
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end and len(times) < 200:
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def fingerprint() -> dict[str, Any]:
    """What the rates depend on."""
    return {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _place() -> Path:
    key = hashlib.sha256(json.dumps(fingerprint(), sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / "machine" / f"{key}.json"
