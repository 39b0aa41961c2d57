"""`microplane check`: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from microplane.cli import interrupts, options
from microplane.cli.options import Config, Quiet, Set, SkipBadRows
from microplane.files import json_line


def check(
    model: options.Model = None,
    data: options.Data = None,
    method: options.Method = None,
    config: Config = None,
    set: Set = None,
    skip_bad_rows: SkipBadRows = False,
    from_: options.From = None,
    rehearsal: Annotated[
        bool, typer.Option("--rehearsal/--no-rehearsal", help="Train two steps on eight rows, or only look.")
    ] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print all that was found as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Would this run succeed, and mean something? Reads all of DATA, shows three rows as they are trained, looks for
    duplicates, leaks, contradictions and what is cut or unknown, for memory and disk, and rehearses the run - train,
    evaluate, save, read back, merge - on eight rows. Nothing is kept.

    It takes what `train` takes. The exit code is 1 if something is wrong; doubts alone are told, and it is 0."""
    from microplane.cli.show_data import rendered
    from microplane.cli.terminal import Terminal, make_console
    from microplane.config.build import assemble
    from microplane.runs.check import check as look
    from microplane.runs.check import lines

    model, data = (None, model) if from_ and data is None else (model, data)
    given = {"model.name": model, "data.train": data, "method.name": method, "model.adapter": from_}
    knobs = assemble(config, given | {"data.skip_bad_rows": skip_bad_rows or None}, set or ())
    terminal = Terminal(make_console(stderr=True))
    with interrupts.told_with_notes(terminal.close):
        found = look(knobs=knobs, rehearsal=rehearsal, watch=None if quiet else terminal)
    if json_:
        typer.echo(json_line(found.to_dict()))
    else:
        console = make_console()
        if found.samples:
            console.print(*rendered(found.samples, console.color_system is not None), "", sep="\n")
        for line in lines(found):
            console.print(line, markup=False, highlight=False)
    if not found.ok:
        raise typer.Exit(1)
