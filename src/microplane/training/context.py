"""What a run sets for the whole process, put back when it ends: so that runs in one process do not see each other."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch


@contextmanager
def run_context(threads: int | None) -> Iterator[None]:
    """Within the context torch has `threads` threads; afterwards their number, and the state of torch's random numbers,
    are what they were before.

    Args:
        threads: of torch's operations; as many as there are now if None.
    """
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            if threads:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


class PeakMemory:
    """The most memory that this process held since this was made, in bytes.

    Linux can be told to count anew. Where it cannot, what is told is the most that the process has ever held.
    """

    def __init__(self) -> None:
        self.counted_anew = False
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.counted_anew = True

    def bytes(self) -> int:
        if self.counted_anew:
            with suppress(OSError, StopIteration):
                lines = Path("/proc/self/status").read_text().splitlines()
                return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) << 10
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (or SIGTERM) asks for an orderly end after the step; the second one ends at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: leave signals alone
        previous = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
