"""Rows become tokens in several processes at once. What comes back is in order: nothing depends on them.

The processes are copies of this one (fork): they begin at once, with the tokenizer and the template that stand in its
memory, and share it. Where the system makes no such copies safely, and for few items, all is done here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

from microplane.errors import DataError
from microplane.hardware import usable_cores

T = TypeVar("T")
R = TypeVar("R")

WORTH = 2_000  # items from which other processes pay
CHUNK = 200  # items that a process gets at once
AHEAD = 3  # chunks for each process that are under way: what is held does not grow with the number of items
MOST = 8  # processes: one that reads and writes keeps no more of them busy
PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux

_function: Callable[[Any], Any]  # of a copy


def side_by_side(function: Callable[[list[T]], R], items: Iterator[T], count: int) -> Generator[R, None, None]:
    """What a function makes of the items, `CHUNK` at a time and in order.

    Args:
        function: depends on its items alone. Items and results are sent between processes; the function is not.
        count: how many items there are, about.

    Raises:
        DataError: if a copy ends that should not, as one that the system ended for want of memory.
    """
    cores = min(usable_cores(), MOST)
    with _copies(function, cores if count >= WORTH and sys.platform == "linux" else 1) as pool:
        if pool is None:
            while chunk := list(islice(items, CHUNK)):
                yield function(chunk)
            return
        under_way: deque[Future[R]] = deque()
        while True:
            while len(under_way) < AHEAD * cores and (chunk := list(islice(items, CHUNK))):
                under_way.append(pool.submit(_made, chunk))
            if not under_way:
                return
            future = under_way.popleft()
            yield future.result()


@contextmanager
def _copies(function: Callable[[Any], Any], count: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that have ended when the block has, however it did; None where one is enough, or the system allows no
    more."""
    pool = _begun(function, count) if count > 1 else None
    try:
        yield pool
    except BrokenProcessPool:
        raise DataError(
            "a process that made tokens of the rows was ended from outside, most likely for want of memory; nothing is "
            "kept of the tokens. Free some memory, or let one do it: taskset -c 0 microplane ..."
        ) from None
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def _begun(function: Callable[[Any], Any], count: int) -> ProcessPoolExecutor | None:
    before = set(active_children())
    try:
        pool = ProcessPoolExecutor(count, get_context("fork"), _begin, (function, os.getpid()))
    except (OSError, ImportError, NotImplementedError):  # without semaphores, as in some containers
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which copies do not have: none is needed
            pool.submit(int).result()  # all begin with the first task
    except (OSError, BrokenProcessPool):  # no more processes, or no memory to copy
        for process in set(active_children()) - before:  # those that there was room for wait for work
            process.kill()
            process.join()
        pool.shutdown(wait=True, cancel_futures=True)
        return None
    return pool


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    """In a copy: Ctrl-C is for the process that it was made from, and when that dies the copy does."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be watched
        os._exit(1)


def _made(chunk: list[Any]) -> Any:
    return _function(chunk)
