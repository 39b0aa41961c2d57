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
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'rank'?"` for a near miss of a known name, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
