"""Processes of trials, as they are begun and waited for."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

STOP = signal.SIGTERM
"""Has a trial save and end. What a script begins in the background ignores SIGINT, and so do processes of its own."""


class LostError(Exception):
    """Nobody can tell what became of a process: the machine that it ran on does not answer."""


class Running(Protocol):
    """The process of a trial."""

    def wait(self, seconds: float) -> int | None:
        """Its exit code, of one that a signal ended the signal's number below 0; None while it still runs.

        Raises:
            LostError: if nobody can tell any more.
        """

    def interrupt(self) -> None:
        """Have it save and end, as Ctrl-C does; a second time at once."""


def begun(command: Sequence[str], log: Path, settings: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A process of this machine. Ctrl-C reaches its parent alone, which hands it on once.

    Args:
        settings: environment variables beside those of this process.
    """
    with log.open("wb") as errors:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | (settings or {}),
            start_new_session=True,
        )


@dataclass
class Local:
    """A process of this machine."""

    process: subprocess.Popen[bytes]

    def wait(self, seconds: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def interrupt(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(STOP)
