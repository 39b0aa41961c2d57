"""The console script, and `python -m microplane`. Interrupts are looked after before all that takes long to import."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress

from microplane.cli import interrupts


def main() -> None:
    interrupts.arm()
    try:
        from microplane.cli.app import main as run
    except BaseException:
        if interrupts.received():
            interrupts.end()
        raise
    run()


def program() -> None:
    """`main`, and an end without taking apart what is in memory: where torch is, that takes half a second and more."""
    try:
        main()
    except SystemExit as end:
        if "torch" not in sys.modules or sys.getprofile() is not None or not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    else:
        return
    threading._shutdown()  # type: ignore[attr-defined]  # what Python does at its end, in this order
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the reader may be gone
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    program()
