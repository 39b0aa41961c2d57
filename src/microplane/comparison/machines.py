"""Where the processes of trials run: here, or on the machines of a Ray cluster (`ray_cluster.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from microplane.comparison.fork_server import ForkServer
from microplane.comparison.processes import Local, Running, begun
from microplane.hardware import usable_cores


class Machines(Protocol):
    """Where trials run."""

    at_once: int  # trials

    @property
    def threads(self) -> int | None:
        """Of a trial; None where it may take what it takes."""

    def begin(self, command: Sequence[str], log: Path) -> Running:
        """A process for a trial; what it says of errors goes into `log`."""


@dataclass
class ThisMachine:
    """One trial after another, or several at once, each with its part of the processor."""

    at_once: int = 1
    server: ForkServer = field(default_factory=ForkServer)

    @property
    def threads(self) -> int | None:
        return None if self.at_once == 1 else max(1, usable_cores() // self.at_once)

    def begin(self, command: Sequence[str], log: Path) -> Running:
        if (forked := self.server.begin(command, log)) is not None:
            return forked
        return Local(begun(command, log))


@contextmanager
def this_machine(at_once: int = 1) -> Iterator[ThisMachine]:
    """Trials here, until the block ends."""
    machine = ThisMachine(at_once)
    try:
        yield machine
    finally:
        machine.server.close()
