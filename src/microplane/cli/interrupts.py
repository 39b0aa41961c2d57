"""Ctrl-C, SIGTERM and the end of the terminal, wherever the program is: one line, an exit code, nothing half-written.

All of them raise KeyboardInterrupt, so that what was begun is undone or saved on the way out. What must not be
imported late stands here, and it imports next to nothing: `python -m microplane` arms it before all else.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

STOPPED = 3  # exit code of a run that was stopped and saved in good order

AGAIN = 0.05  # seconds
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_received: int | None = None


def arm() -> None:
    """From now on a signal raises KeyboardInterrupt; not one that the process was told to ignore, as with nohup."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)
    sys.unraisablehook = _swallowed


def _swallowed(unraisable: sys.UnraisableHookArgs) -> None:
    """An interrupt that came while Python ran what may not raise, as a destructor or a weak reference's callback, is
    lost there: it is sent again, when that is over."""
    if not (isinstance(unraisable.exc_value, KeyboardInterrupt) and _received is not None):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(AGAIN, os.kill, (os.getpid(), _received))
    again.daemon = True
    again.start()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global _received
    _received = number
    raise KeyboardInterrupt


def received() -> bool:
    """Whether the program is to end, whatever became of the exception on its way."""
    return _received is not None


def forget() -> None:
    """An interrupt has done what it was for, as to cut an answer short."""
    global _received
    _received = None


def disarm() -> None:
    """What comes now ends the program as the system does it: all is done but to leave."""
    for number in _caught():
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def told_with_notes(close: Callable[[], None]) -> Iterator[None]:
    """Of an interrupt, what those who passed it on have noted is said too. `close` is called at the end in any case: it
    puts the terminal in order."""
    try:
        yield
    except KeyboardInterrupt as error:
        close()
        end(getattr(error, "__notes__", ()))
    finally:
        close()


def end(notes: Sequence[str] = ()) -> NoReturn:
    """Say in one line that it was interrupted, and leave: with 130 after Ctrl-C, as a shell counts.

    Without waiting for threads, which may be fetching a model.
    """
    number = _received or signal.SIGINT
    for one in _caught():
        signal.signal(one, signal.SIG_IGN)
    what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    with suppress(OSError, ValueError):  # the terminal may be gone
        sys.stdout.flush()
        print("; ".join([what, *notes]), file=sys.stderr, flush=True)
    if _received is None:  # no signal, but somebody's own KeyboardInterrupt
        sys.exit(128 + number)
    os._exit(128 + number)


def _caught() -> list[int]:
    return [number for number in SIGNALS if signal.getsignal(number) is _interrupt]
