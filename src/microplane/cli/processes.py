"""`microplane train --processes N`: the same command N times on this machine, each told which one it is.

As torchrun does, by the same variables of the environment; but Ctrl-C goes to the processes alone, which save and end,
and the exit code is the first one's. torchrun is for several machines, and for starting anew what has died.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from microplane.cli import interrupts

GRACE = 45.0  # seconds for the others to end, once one has died


def is_first() -> bool:
    """Whether this process speaks: it is alone, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def start(count: int, arguments: Sequence[str]) -> NoReturn:
    """Run the command in `count` processes, and leave with the exit code of the first, or of one that was killed."""
    from microplane.hardware import usable_cores

    shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
    command = [sys.executable, "-m", "microplane", *_without_processes(arguments)]
    for number in interrupts.SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # not inherited as such: each arms its own
    running = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=_default_signals,
        )
        for rank in range(count)
    ]
    for number in interrupts.SIGNALS:
        signal.signal(number, lambda number, frame: _pass_on(running, number))
    sys.exit(_watch(running))


def _watch(running: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all. Once one has died, the others get `GRACE` seconds to end by themselves."""
    died: float | None = None
    while any(process.poll() is None for process in running):
        if died is None and any(process.poll() not in (None, 0, interrupts.STOPPED) for process in running):
            died = time.monotonic()
        if died is not None and time.monotonic() - died > GRACE:
            _pass_on(running, signal.SIGKILL)
        time.sleep(0.1)
    codes = [process.returncode for process in running]
    for rank, code in enumerate(codes):
        if code < 0:
            print(f"process {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
    wrong = [code for code in codes if code not in (0, interrupts.STOPPED)]
    code = codes[0] or (wrong[0] if wrong else 0)
    return 128 - code if code < 0 else code


def _default_signals() -> None:
    for number in interrupts.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _pass_on(running: list[subprocess.Popen[bytes]], number: int) -> None:
    """Ctrl-C at a terminal reaches them by itself, as they are of its group; sent twice it would end them at once."""
    if number == signal.SIGINT and sys.stdin.isatty():
        return
    for process in running:
        with suppress(OSError):
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _without_processes(arguments: Sequence[str]) -> list[str]:
    """The command line without --processes N."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--processes"):
            kept.append(argument)
        skip = not skip and argument == "--processes"
    return kept
