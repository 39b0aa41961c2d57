"""How errors are told: one message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import typer

from microplane.cli import interrupts
from microplane.config.build import fields
from microplane.config.knobs import GenerateKnobs, RunKnobs
from microplane.config.other_names import called, meaning


def fail(message: str, code: int = 1) -> NoReturn:
    interrupts.disarm()
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


_MAY_BE_EMPTY = ("--system",)  # '' switches a template's default off


def refuse_empty(arguments: Sequence[str]) -> None:
    """An option with an empty value, as a variable of the shell that is not set leaves it, would pass for one that is
    not given, or for the folder that one is in."""
    for before, argument in pairwise(["", *arguments]):
        if argument == "--":
            return
        option, given, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
        if given and option.startswith("-") and not value.strip() and option not in _MAY_BE_EMPTY:
            fail(f"nothing stands behind {option} (a variable that is not set?): give a value, or leave it out", 2)


def tell_foreign(error: Exception) -> None:
    """What is no defect of ours ends here, with one message."""
    if isinstance(error, OSError):
        if error.errno is None or (error.filename is None and error.errno not in _DISK):
            return
        if error.errno == 13 and os.path.isfile(error.filename) and not os.access(error.filename, os.R_OK):
            fail(f"{error.filename} cannot be read: {error.strerror}. Allow reading it, and try again")
        fail(f"{error.filename or 'writing a file'}: {error.strerror}. {_DISK.get(error.errno, '')}".rstrip())
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        _tell_usage(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        fail("the memory of this machine does not suffice. Try a smaller train.micro_tokens or eval.batch_tokens")


_ELSEWHERE = "Choose another place; for runs it is --set runs=FOLDER, for the cache the variable MICROPLANE_CACHE."
_ROOM = "Make room, and try again; a run that had begun goes on with microplane train --resume RUN."
_DISK = {28: _ROOM, 122: _ROOM, 30: _ELSEWHERE, 13: _ELSEWHERE}  # full, over the quota, read-only, not allowed


def _tell_usage(error: Any) -> NoReturn:
    """Errors of typer itself, such as an unknown option, told as all others are. Without arguments there is help."""

    if not error.format_message().strip() or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    option = getattr(error, "option_name", None)
    place = getattr(getattr(error, "ctx", None), "command_path", "microplane")
    known = option and knob_for_option(str(option), place.rpartition(" ")[2])
    message = f"there is no option {option}.{known}" if known else error.format_message()
    fail(f"{message.rstrip('.')}. See {place} --help", error.exit_code)


def knob_for_option(option: str, command: str = "") -> str:
    """How to set the knob that somebody took for an option of a command, as `--clip`; empty if none is like it."""
    name = option.lstrip("-").replace("-", "_")
    there = [known for known, _ in fields(GenerateKnobs if command == "generate" else RunKnobs)]
    known = next((known for known in there if known.rsplit(".", 1)[-1] == name), None) or called(name, there)
    if not known or (command == "generate" and known not in there):
        return meaning(name, there)
    return f" Knobs are set with --set, as in --set {known}{'' if '=' in known else '=VALUE'}."
