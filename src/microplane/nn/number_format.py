"""The number format of a base model, and which of float32 and bfloat16 multiplies faster on this machine.

It is measured once and then remembered, not looked up by the processor's name: some multiply bfloat16 four times faster
than float32, some sixty times slower.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from microplane import hardware as environment
from microplane.cache.entries import touch
from microplane.device import CPU, name_of
from microplane.files import cache_dir, write_aside

SHAPE = (512, 576, 1536)  # (tokens, in, out): a small step of a small model
CANDIDATES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}  # float32 is measured first
HOPELESS = 4  # times as long as float32: such a format is not measured to the end, which may take seconds


class NumberFormat(NamedTuple):
    """In which number formats a base model is stored and multiplied, and where."""

    dtype: torch.dtype  # of the products and activations, of the embedding, the norms and the head
    quantised: str | None = None  # "int8" or "nf4": how the linears of the blocks are stored, nn/quantised.py
    cached: bool = False  # keep weights dequantised after their first use
    in_8_bits: bool = False  # multiply quantised weights in 8 bits (nn/ops/int8.py), not in `dtype`
    weights: torch.dtype | None = None  # format of weights that train, if it is wider than `dtype`
    device: torch.device = CPU  # where it is held and multiplied

    @property
    def stored(self) -> torch.dtype:
        """The format in which weights that are not quantised are stored."""
        return self.weights or self.dtype

    @property
    def multiplied(self) -> torch.dtype | None:
        """The format of the activations where it is not that of the weights."""
        return None if self.stored == self.dtype else self.dtype

    @property
    def compute(self) -> str:
        """As the knob `model.compute` has it."""
        return "int8" if self.in_8_bits else self.dtype_name

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """As the knob `model.dtype` has it."""
        return self.quantised or self.dtype_name


def fastest_dtype(refresh: bool = False, device: torch.device = CPU) -> torch.dtype:
    """float32 or bfloat16, whichever is at least a tenth faster; float32 in doubt, as it is the more exact."""
    seconds = measured(refresh, device)
    return torch.bfloat16 if seconds["bfloat16"] < 0.9 * seconds["float32"] else torch.float32


def slowdown(form: NumberFormat) -> float:
    """How many times as long as those of float32 its products take where it is: measured once, too."""
    name = "int8" if form.in_8_bits else form.dtype_name
    if name not in CANDIDATES or name == "float32":
        return 1.0
    seconds = measured(device=form.device, names=("float32", name))
    return seconds[name] / seconds["float32"]


def measured(
    refresh: bool = False, device: torch.device = CPU, names: Sequence[str] = ("float32", "bfloat16")
) -> dict[str, float]:
    """Seconds of one forward and one backward product of `SHAPE` in each of these `CANDIDATES`; float32 comes first."""
    path = _cache_file(device)
    known = {} if refresh else _remembered(path)
    seconds = dict(known)
    for name in names:
        if name not in seconds:
            seconds[name] = _time(CANDIDATES[name], device, seconds.get("float32", float("inf")))
    if seconds != known:
        with suppress(OSError):  # a cache that cannot be written only costs the measurement again
            write_aside(path, json.dumps({"machine": _machine(device), "seconds": seconds}).encode())
    return {name: seconds[name] for name in names}


def _remembered(path: Path) -> dict[str, float]:
    touch(path)
    try:
        return {name: float(seconds) for name, seconds in json.loads(path.read_text())["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _time(dtype: torch.dtype, device: torch.device, float32: float, budget: float = 0.2) -> float:
    """The least of some rounds; `float32` is what they take in that format."""
    tokens, width, out = SHAPE
    x, w, g = torch.randn(tokens, width), torch.randn(out, width), torch.randn(tokens, out)
    x, w, g = (matrix.to(device, dtype) for matrix in (x, w, g))
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    best, spent, rounds = float("inf"), 0.0, 0
    while rounds < 5 or (spent < budget and rounds < 50):  # of few, on a busy machine, chance would decide
        start = time.perf_counter()
        multiply(x, w.t())
        multiply(g, w)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        last = time.perf_counter() - start
        spent, rounds, best = spent + last, rounds + 1, min(best, last) if rounds else best
        if HOPELESS * float32 < best < float("inf"):
            break
    return best


def _machine(device: torch.device) -> str:
    where = "" if device.type == "cpu" else f"{name_of(device)}, "
    return f"{where}{environment.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cache_file(device: torch.device) -> Path:
    return cache_dir() / "number_format" / f"{hashlib.sha256(_machine(device).encode()).hexdigest()[:16]}.json"
