"""A process that has imported what a trial needs, and begins each trial as a copy of itself (fork): importing torch and
the rest takes about two seconds, which a comparison would spend as often as it has trials.

A trial is a process of its own as before: what it imports counts as its memory, its time begins when it does, and it
goes on if the comparison is killed. Where there is no fork server, a trial imports for itself.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np

from microplane.comparison.processes import STOP, LostError

IMPORTED = ("microplane.cli.app", "microplane.runs.train")
TRAINS = ("-m", "microplane")  # how a command goes on that it can begin
POPULATE_READ = 22  # of madvise; older systems than Linux 5.14 refuse it
ANSWERED = 5.0  # seconds within which it tells of a process that it was asked for


class Forked:
    """A trial that a fork server has begun."""

    def __init__(self, server: ForkServer, pid: int):
        self.server, self.pid = server, pid

    def wait(self, seconds: float) -> int | None:
        return self.server.code(self.pid, seconds)

    def interrupt(self) -> None:
        if self.server.code(self.pid, 0) is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, STOP)


class ForkServer:
    """The fork server as a comparison sees it. It ends with the comparison, its trials do not."""

    def __init__(self) -> None:
        self._one = threading.Lock()  # is begun at a time
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = self._lost = False
        self._begun: int | None = None  # the process that was asked for last
        self._codes: dict[int, int] = {}

    def begin(self, command: Sequence[str], log: Path) -> Forked | None:
        """A process for `command`, which runs Python with `-m microplane`; None where it cannot be had."""
        if sys.platform != "linux" or tuple(command[1:3]) != TRAINS:
            return None
        line = json.dumps({"arguments": list(command[3:]), "log": str(log.absolute())}).encode() + b"\n"
        with self._one, self._changed:
            if self._process is None:
                self._process = self._started()
            self._changed.wait_for(lambda: self._ready or self._lost)  # nothing has been asked for yet
            pid = None if self._lost else self._asked(self._process, line)
        return None if pid is None else Forked(self, pid)

    def _started(self) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, "-m", __name__], start_new_session=True, bufsize=0, **pipes)
        threading.Thread(target=self._listen, args=(process.stdout,), daemon=True).start()
        return process

    def _asked(self, process: subprocess.Popen[bytes], line: bytes) -> int | None:
        self._begun = None
        try:
            cast(IO[bytes], process.stdin).write(line)
            self._changed.wait_for(self._answered)
        except OSError:  # it has ended
            return None
        except BaseException:
            if self._changed.wait_for(self._answered, ANSWERED) and self._begun is not None:
                os.kill(self._begun, STOP)
            raise
        return self._begun

    def _answered(self) -> bool:
        return self._begun is not None or self._lost

    def _listen(self, said: IO[bytes]) -> None:
        """Note what the server says, until it ends."""
        for line in said:
            told = json.loads(line)
            with self._changed:
                self._ready = True
                if "code" in told:
                    self._codes[told["pid"]] = told["code"]
                elif "pid" in told:
                    self._begun = told["pid"]
                    self._codes.pop(self._begun, None)  # of an earlier process of this number
                self._changed.notify_all()
        with self._changed:
            self._lost = True
            self._changed.notify_all()

    def code(self, pid: int, seconds: float) -> int | None:
        """With what a process has ended; None if it has not within this time.

        Raises:
            LostError: if the server is gone, which alone could tell.
        """
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes or self._lost, seconds)
            if pid in self._codes or not self._lost:
                return self._codes.get(pid)
        raise LostError("the process that began it has ended")

    def close(self) -> None:
        if self._process is not None:
            cast(IO[bytes], self._process.stdin).close()
            self._process.wait()


def serve() -> None:
    """The server itself: begins what standard input asks for, a line of JSON each, and tells of beginnings and ends on
    standard output, until its input ends. Its first line, of nothing, says that it is ready."""
    for name in IMPORTED:
        importlib.import_module(name)
    ends, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake)
    rest, pages = b"", _file_pages()
    _tell()
    while True:
        ready, *_ = select.select([0, ends], [], [])
        if ends in ready:
            os.read(ends, 1 << 12)
            _tell_ended()
        if 0 in ready:
            if not (read := os.read(0, 1 << 16)):
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                if (pid := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(ends)
                    os.close(wake)
                    _map(pages)
                    _become(**json.loads(line))
                _tell(pid=pid)


def _tell(**said: int) -> None:
    os.write(1, json.dumps(said).encode() + b"\n")


def _tell_ended() -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(pid=found[0], code=os.waitstatus_to_exitcode(found[1]))


def _file_pages() -> list[tuple[int, int]]:
    """(address, bytes) of what this process has read of the files that it maps, libraries above all. A copy of it has
    none of these pages until it reads there itself, and would seem to take some 60 MB less than it does alone."""
    size, found = os.sysconf("SC_PAGESIZE"), []
    with suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, _, _, _, inode, *_ = line.split()
            first, last = (int(end, 16) for end in place.split("-"))
            if inode == "0":
                continue
            entries = np.frombuffer(
                os.pread(pagemap.fileno(), (last - first) // size * 8, first // size * 8), np.uint64
            )
            edges = np.flatnonzero(np.diff(np.concatenate(([0], entries >> np.uint64(63), [0])).astype(np.int8)))
            found += [(first + int(a) * size, int(b - a) * size) for a, b in edges.reshape(-1, 2)]
    return found


def _map(pages: list[tuple[int, int]]) -> None:
    """Have the same pages of files as the process that this is a copy of."""
    advise = ctypes.CDLL(None).madvise
    for address, length in pages:
        advise(ctypes.c_void_p(address), ctypes.c_size_t(length), POPULATE_READ)


def _become(arguments: list[str], log: str) -> NoReturn:
    """Run the command line as a process that was begun for it does."""
    code = 1
    try:
        os.setsid()  # Ctrl-C reaches the comparison alone
        nothing = os.open(os.devnull, os.O_RDWR)
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for number, file in enumerate((nothing, nothing, errors)):
            os.dup2(file, number)
        program = sys.modules["__main__"] = importlib.import_module("microplane.__main__")
        sys.argv = [str(program.__file__), *arguments]
        program.program()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
    os._exit(0)  # without taking apart what is in memory
