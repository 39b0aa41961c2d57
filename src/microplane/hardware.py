"""What machine and which versions a run had."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch


def describe() -> dict[str, Any]:
    return {
        "microplane": package_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def package_version() -> str:
    try:
        return version("microplane")
    except PackageNotFoundError:
        return "not installed"


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


def commit() -> str | None:
    """The commit of the source tree that this package runs from, if it is one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


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
