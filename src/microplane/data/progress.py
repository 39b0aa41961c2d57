"""Who is told what a long job does. The command line draws it (`console.Terminal`); the default is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from microplane.errors import ConfigError

Progress = Callable[[int, int], None]  # (done, of); of 0 where that is not known yet
RowProgress = Callable[[str, int, int | None], None]  # what is being done, rows done, rows in all if known


class Watcher(Protocol):
    def say(self, text: str) -> None:
        """A line that stays."""

    def progress(self, what: str) -> Progress:
        """Something that takes a while; the returned function is called as it goes."""

    def record(self, record: dict[str, Any]) -> None:
        """A step or a validation of the training loop."""


class Silent:
    def say(self, text: str) -> None:
        pass

    def progress(self, what: str) -> Progress:
        return lambda done, total: None

    def record(self, record: dict[str, Any]) -> None:
        pass


class OnlyProgress(Silent):
    """Of another watcher: it sees what takes a while, and is told nothing."""

    def __init__(self, watch: Watcher):
        self.progress = watch.progress  # type: ignore[method-assign]


class Calling:
    """Hands everything on to another watcher, and each step and validation to a function too."""

    def __init__(self, watch: Watcher, callback: Callable[[dict[str, Any]], None] | None):
        if callback is not None and not callable(callback):
            raise ConfigError(f"callback must be a function of a record, and is {callback!r:.80}")
        if not all(callable(getattr(watch, name, None)) for name in ("say", "progress", "record")):
            raise ConfigError(f"watch must have the functions say, progress and record, and is {watch!r:.80}")
        self._watch, self._callback = watch, callback

    def say(self, text: str) -> None:
        self._watch.say(text)

    def progress(self, what: str) -> Progress:
        return self._watch.progress(what)

    def record(self, record: dict[str, Any]) -> None:
        self._watch.record(record)
        if self._callback is not None:
            self._callback(record)

    def expect(self, seconds: float) -> None:
        expect(self._watch, seconds)


def expect(watch: Watcher, seconds: float) -> None:
    """Tell a watcher that wants to know (by a function `expect`) how long what comes after the training will take."""
    if (told := getattr(watch, "expect", None)) is not None:
        told(seconds)


def counting(watch: Watcher) -> Callable[[str, int, int | None], None]:
    """A watcher as what reads data wants it: called with what is done, rows done, and rows in all if known (else it is
    told 0)."""
    going: dict[str, Progress] = {}

    def count(what: str, done: int, total: int | None) -> None:
        if what not in going:
            going.clear()
            going[what] = watch.progress(what)
        going[what](done, total or 0)
        if total and done >= total:
            going.clear()

    return count
