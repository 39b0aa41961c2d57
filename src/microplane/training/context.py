"""What a run sets for the whole process, put back when it ends: so that runs in one process do not see each other."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from microplane.config.knobs import TrainKnobs
from microplane.cpu_memory import caching_allocator
from microplane.errors import ConfigError, first_line
from microplane.nn.head_attention import large_scores

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
COMPILED, KEPT_PRODUCTS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", 128
"""How many compiled products oneDNN keeps. Each shape of a product in bfloat16 is one, of about 0.6 MB; a step has some
dozens of them, and another number of tokens needs all of them anew. oneDNN's own limit of 1,024 is never used again."""
STOP_SIGNALS: list[int] = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


def leaves_holes(longest: int, dtype: torch.dtype, recompute: str) -> bool:
    """True if a run without the caching allocator leaves its large pieces to the C library, whose heap then has holes
    between them.

    They come straight from the system where rows are long (a row of 990 tokens, whose scores took 8 MB at a time, was
    seen to leave 120 MB of holes) and where whole blocks are computed again to save memory (a BERT with rows of 508
    tokens held 1.8 to 2.0 GB, and 1.3 so). In bfloat16, whose products are fast, that would cost too much of the time.

    Args:
        longest: tokens of the longest row.
        recompute: as the knob `train.recompute`.
    """
    return dtype != torch.float32 or not (large_scores(longest) or recompute == "blocks")


@contextmanager
def run_context(knobs: TrainKnobs) -> Iterator[None]:
    """Within the context torch has `threads` threads, as many as there are now if None, and where the run asks for it
    only `deterministic` operations; afterwards all is as it was, the state of torch's random numbers too.

    Raises:
        ConfigError: for an operation that torch has in no deterministic form.
    """
    before = torch.get_num_threads()
    with (
        torch.random.fork_rng(devices=[]),
        _few_products_kept(),
        _deterministic(knobs.deterministic),
        caching_allocator(),
    ):
        try:
            if knobs.threads:
                torch.set_num_threads(knobs.threads)
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def _few_products_kept() -> Iterator[None]:
    """The limit is read at the first product of the process, and is then its own."""
    if COMPILED in os.environ:
        yield
        return
    os.environ[COMPILED] = str(KEPT_PRODUCTS)
    try:
        yield
    finally:
        os.environ.pop(COMPILED, None)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, ":4096:8")  # which cuBLAS reads at its first product
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise ConfigError(
            f"train.deterministic: torch has no deterministic form of an operation of this run: {first_line(error)}. "
            "Set train.deterministic=false, or model.device=cpu"
        ) from None
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


class PeakMemory:
    """The most memory that this process held since this was made, in bytes.

    Linux can be told to count anew. Where it cannot, what is told is the most that the process has ever held.

    Args:
        before: what it held at most in an earlier part of the same work.
    """

    def __init__(self, before: int = 0) -> None:
        self.before, self.counted_anew = before, False
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.counted_anew = True

    def bytes(self) -> int:
        return max(self.before, self._since())

    def _since(self) -> int:
        if self.counted_anew:
            with suppress(OSError, StopIteration):
                lines = Path("/proc/self/status").read_text().splitlines()
                return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) << 10
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def interruptible(speaks: bool = True, orderly: bool = True) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (SIGTERM, or the end of the terminal) asks for an orderly end after the step, and is answered at
    once; the second one is what it was outside, an end at once. A signal that the process was told to ignore stays so.

    Args:
        orderly: otherwise there is nothing to save, and the first one too is what it was outside.
    """
    if not orderly:
        yield lambda: False
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            return _answer("stopping after this step, and saving; Ctrl-C again ends at once") if speaks else None
        before = previous[number]
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt

    previous: dict[int, Any] = {}
    try:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: leave signals alone
        pass
    try:
        yield lambda: asked
    finally:
        for stopped, handler in previous.items():
            signal.signal(stopped, handler)


def _answer(text: str) -> None:
    """A line on standard error, from within a signal's handler: there a stream may be just at writing."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (RuntimeError, OSError, ValueError, AttributeError):
        with suppress(OSError):
            os.write(2, f"{text}\n".encode())
