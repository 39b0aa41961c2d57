"""What machine and which versions a run had."""

from __future__ import annotations

import ctypes
import platform
from contextlib import suppress
from pathlib import Path

import psutil


def cpu_name() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor() or platform.machine())


def processor() -> str:
    """Its name and what it can do, where the system tells: what compiled code and measured speeds depend on."""
    return "; ".join(_cpuinfo("model name", "flags", "Features")) or f"{platform.processor()} {platform.machine()}"


def _cpuinfo(*names: str) -> list[str]:
    """What Linux tells of its processors under these names, each text once."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return list(dict.fromkeys(line.split(":", 1)[1].strip() for line in lines if line.startswith(names)))


def free_memory() -> int:
    """Bytes that can be taken without swapping."""
    return psutil.virtual_memory().available


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the C library keeps it.

    Steps of ever different sizes leave glibc's heap in pieces: without this, a run of 225 steps that needs 2.2 GB
    was seen to hold 4.4 GB.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
