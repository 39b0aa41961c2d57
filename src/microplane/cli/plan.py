"""`microplane plan`: parse, call, print."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from microplane.cli import options
from microplane.cli.options import Quiet, Set, assigned
from microplane.files import json_line

if TYPE_CHECKING:
    from microplane.planning.plan import Plan

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def plan(
    model: options.Model = None,
    data: options.Data = None,
    methods: Annotated[
        str | None, typer.Option("--methods", "-m", metavar="A,B,...", help="Methods by name, or all.")
    ] = None,
    machine: Annotated[
        str,
        typer.Option("--machine", metavar="SIZE", help="Memory, as in 24GB; this: what is free here."),
    ] = "this",
    set: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """What would each method take on MODEL? Memory by part, disk and time, and whether it fits, before anything runs.
    A folder with a config.json is enough, so models far larger than this machine can be planned.

    Sizes of weights, gradients and optimizer are exact; activations and time are seen on one and two blocks."""
    from microplane.cli.terminal import Terminal, make_console
    from microplane.errors import ConfigError
    from microplane.planning.plan import plan as make_plan

    if model is None:
        raise ConfigError("give a model: microplane plan MODEL [DATA]")
    terminal = Terminal(make_console(stderr=True))
    try:
        found = make_plan(
            model,
            data,
            methods=methods,
            memory=memory_of(machine),
            set=assigned({}, set or ()),
            watch=None if quiet else terminal,
        )
    finally:
        terminal.close()
    if json_:
        typer.echo(json_line(found.to_dict()))
        return
    _tell(found)


def memory_of(text: str) -> int | None:
    """Bytes; None for `this`.

    Raises:
        ConfigError: for what is no size.
    """
    from microplane.errors import ConfigError

    if text == "this":
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--machine {text}: expected a size, as in 24GB, or this")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _tell(found: Plan) -> None:
    from rich.table import Table

    from microplane.cli.terminal import make_console
    from microplane.report.words import duration, short_count, size

    console = make_console()
    told = f"{found.model}: {found.parameters / 1e6:,.1f} million parameters; {size(found.memory)} of memory"
    typer.echo(f"{told}; {found.at_once:,} tokens at once, in rows of {found.row:,}\n")
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("method", "trains", "base", "trained", "active", "total", "fits", "disk"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    table.add_column("time" if found.tokens else "1k tokens", justify="right", no_wrap=True)
    for one in found.methods:
        if one.refused:
            continue
        seconds = one.seconds if one.seconds is not None else one.seconds_per_1000_tokens
        trained = one.adapter + one.gradients + one.optimizer
        parts = (one.base, trained, one.activations, one.total)
        cells = [one.method, short_count(one.trainable), *map(size, parts), "yes" if one.fits else "no", size(one.disk)]
        table.add_row(*cells, duration(max(seconds or 0.0, 0.001)))
    console.print(table)
    for one in found.methods:
        if one.refused or one.advice:
            typer.echo(f"{one.method}: {one.refused or one.advice}")
    typer.echo("\ntrained: the adapter, gradients and the optimizer's state; total: with the process itself")
