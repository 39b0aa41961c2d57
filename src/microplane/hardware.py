"""What machine this is, and how other programs of it are run."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

M_MMAP_THRESHOLD = -3  # of malloc.h


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


def usable_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_started() -> float:
    """When this process began, as `time.time` counts."""
    return psutil.Process().create_time()


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


def keep_no_large_pieces(least: int = 1 << 18) -> None:
    """Let pieces of so many bytes and more come straight from the system and go back as soon as they are freed, where
    the C library is glibc; for the whole process, and from here on.

    Else they lie in its heap, where they leave holes as soon as something that stays is put between them: blocks of 14
    MB that are gathered one after the other, of which one at a time is alive, were seen to take 14 MB each.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, least)


def run_program(
    command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; if that does not come in time, it is killed with all that it started.

    It is asked nothing: its standard input is empty.

    Raises:
        OSError: if it cannot be started.
        subprocess.TimeoutExpired: if it took longer.
    """
    program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        said, complained = program.communicate(timeout=seconds)
    except BaseException:  # Ctrl-C too: it does not reach a session of its own
        _kill(program)
        raise
    return subprocess.CompletedProcess(command, program.returncode, said, complained)


def _kill(program: subprocess.Popen[str]) -> None:
    """Kill a process and those that it started."""
    with suppress(OSError):
        if os.name == "posix":
            os.killpg(program.pid, signal.SIGKILL)
        else:
            program.kill()
    program.wait()
    for pipe in (program.stdout, program.stderr):
        if pipe is not None:
            pipe.close()
