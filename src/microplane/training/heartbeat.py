"""Each process of several hears from the next one every few seconds, and ends it if it falls silent.

A process that dies closes its connections, which the others notice at once. One that is stopped or frozen, or whose
machine is, keeps them open, and the others would wait for its numbers. So a thread of each process sends a datagram to
the one before it in a ring. It does so also while the process measures for hours, and so says nothing of how far that
has come. Silence is counted in turns of the listener's own: of processes that were all stopped together (Ctrl-Z, a
laptop that sleeps) none is taken for dead when they go on. Where datagrams do not get through at all, nothing is
watched.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

BEAT = 3.0  # seconds between two
SILENT = 12  # turns without one after which a process counts as lost
TELLING = 2.0  # seconds to leave the reason in
GRACE = 10.0  # seconds for this process to end by itself, once it can no longer go on


@dataclass
class Heartbeat:
    """This process's part in the ring, from `start` to `stop`.

    Args:
        rank: of this process.
        say_why: leaves the reason where the other processes look for it.
    """

    rank: int
    say_why: Callable[[str], None]
    _socket: socket.socket = field(init=False)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))

    def address(self, master: str) -> tuple[str, int, str, int]:
        """Where this process can be reached: its IP as it talks to `master`, a port, `this_machine()`, its id there."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.connect((master, 1))  # nothing is sent
            ip: str = asked.getsockname()[0]
        return ip, self._socket.getsockname()[1], this_machine(), os.getpid()

    def start(self, addresses: list[tuple[str, int, str, int]]) -> None:
        """Begin to send and to listen.

        Args:
            addresses: of all processes, in the order of their ranks.
        """
        threading.Thread(target=self._send, args=(addresses[self.rank - 1][:2],), daemon=True).start()
        watched = (self.rank + 1) % len(addresses)
        threading.Thread(target=self._listen, args=(watched, *addresses[watched][2:]), daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._socket.close()

    def _send(self, to: tuple[str, int]) -> None:
        while not self._stopped.is_set():
            with suppress(OSError):
                self._socket.sendto(b"", to)
            self._stopped.wait(BEAT)

    def _listen(self, watched: int, machine: str, pid: int) -> None:
        heard, silent = False, 0
        self._socket.settimeout(BEAT)
        while silent < SILENT:
            try:
                self._socket.recv(1)
                heard, silent = True, 0
            except TimeoutError:
                silent += heard
            except OSError:
                return  # stopped
        if not self._stopped.is_set():
            self._end(watched, machine, pid)

    def _end(self, watched: int, machine: str, pid: int) -> None:
        """End the silent process where it is on this machine, which the others notice; else this one."""
        name = machine.split()[0]
        text = f"process {watched} on {name} has not answered for {BEAT * SILENT:.0f} seconds, so it was given up"
        telling = threading.Thread(target=self.say_why, args=(text,), daemon=True)
        telling.start()
        telling.join(TELLING)  # where the silent one keeps the reasons, nobody answers
        if machine == this_machine():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not self._stopped.wait(GRACE):
            print(f"error: {text}. All that was saved is there: go on with --resume", file=sys.stderr, flush=True)
            os._exit(1)


def this_machine() -> str:
    """Its name, and what tells it from others of that name: containers have process ids of their own, and to kill by
    the id of another would end somebody else's work."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # not Linux: by its name alone
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
