"""What users can be told.

Every error a user can cause is one of these; the command line prints its text without a traceback and exits
with 1. A message has three parts: what is wrong (with the value), where, and what is possible. Anything else that
escapes is a defect of ours and keeps its traceback.

    MicroplaneError
    |-- ConfigError       a knob: unknown, of the wrong type, or out of range
    |-- DataError         a data file, or rows of it
    |-- ModelError        a model folder, file or name that cannot be opened
    |-- AdapterError      an adapter that does not fit, or is damaged
    |-- CheckpointError   a run that cannot be resumed
    `-- TrainingError     a run that must stop: not a number, nothing to train on, a tensor that does not move

What goes on all the same but worse (slower, say) is a notice: whoever listens is told, as the terminal of a run;
without a listener it is a Python warning.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class MicroplaneError(Exception):
    """Base of all errors that are shown to a user as one message."""


class ConfigError(MicroplaneError):
    pass


class DataError(MicroplaneError):
    pass


class ModelError(MicroplaneError):
    pass


class AdapterError(MicroplaneError):
    pass


class CheckpointError(MicroplaneError):
    pass


class TrainingError(MicroplaneError):
    pass


class MicroplaneWarning(UserWarning):
    """A notice that nobody listens for."""


def check_type(value: object, what: str, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raises: ConfigError, if what a program hands in as `what` is of another type."""
    if not isinstance(value, kinds):
        raise ConfigError(f"{what} must be {wanted}, and is {value!r:.80} (a {type(value).__name__})")


_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def notice(text: str) -> None:
    """Tell the user something that stops nothing."""
    if (say := _listener.get()) is not None:
        say(text)
    else:
        warnings.warn(text, MicroplaneWarning, stacklevel=3)


@contextmanager
def notices_to(say: Callable[[str], None] | None) -> Iterator[None]:
    """Within the block `say` gets the notices of this thread; with None they go where they went before."""
    if say is None:
        yield
        return
    token = _listener.set(say)
    try:
        yield
    finally:
        _listener.reset(token)


def first_line(error: BaseException) -> str:
    """What an error says, on one line; empty for one that says nothing."""
    return next(iter(str(error).splitlines()), "")


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'rank'?"` for a near miss of a known name, also in other capitals, else an empty string."""
    by_form = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), by_form, n=1, cutoff=0.6)
    return f" Did you mean {by_form[close[0]]!r}?" if close else ""
