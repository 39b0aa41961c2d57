"""The command `microplane mixture`, as `cli.py` has the others: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def mixture(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A mixture.yaml: sources, templates, weights.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Rows to draw; those of FILE otherwise.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the rows to this JSONL file; one that was cut off goes on.")
    ] = None,
    families: Annotated[bool, typer.Option("--families", help="List the families of templates.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show what FILE mixes, by its rules and as drawn, and rendered rows of each kind. Nothing is trained."""
    from microplane.data.mixtures.sampler import open_mixture
    from microplane.data.mixtures.task_templates import list_families
    from microplane.errors import ConfigError

    if families:
        typer.echo(list_families())
        return
    if file is None:
        raise ConfigError("no mixture given; expected a file, as in: microplane mixture mixture.yaml")
    mixed = open_mixture(file)
    from microplane.cli.show_mixture import describe_mixture  # these need torch; errors above come at once

    described = describe_mixture(mixed, rows)
    if json_:
        typer.echo(json.dumps(described.facts, ensure_ascii=False))
    else:
        from microplane.cli.terminal import make_console

        make_console().print(described)
    if out:
        from microplane.data.mixtures.render import materialise

        there = materialise(mixed, out, rows or mixed.plan.knobs.rows)
        typer.echo(f"written to {out}" + (f"; {there:,} rows were there already" if there else ""), err=True)
