"""What there is: methods, knobs. Torch is imported by nothing here but what needs it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from microplane.config.build import fields, type_name
from microplane.errors import ConfigError, nearest


def methods(
    table: Annotated[bool, typer.Option("--table", help="Only the facts, as docs/methods/README.md has them.")] = False,
) -> None:
    """List the methods, their facts and their knobs."""
    from microplane.methods import METHODS, facts_table

    if table:
        typer.echo(facts_table())
        return
    for name, method in METHODS.items():
        facts = method().facts()
        shown = {"merges": facts["mergeable"], "starts as the base": facts["starts_at_base"]}
        shown["trains the base's own weights"] = facts["trains_base"]
        told = "; ".join(f"{fact}: {'yes' if value else 'no'}" for fact, value in shown.items())
        package = METHODS.package_of(name)
        list_line(f"{name}: {method.summary}{f' (from the package {package})' if package else ''}")
        list_line(f"  {told}; default train.lr: {method.default_lr:g}")
        for knob, field in fields(method):
            list_line(f"  method.{knob} = {shown_default(field.default)} ({type_name(field)}): {field.description}")


def knobs(
    section: Annotated[str, typer.Argument(help="Only those that begin so, as in train or generate.")] = "",
) -> None:
    """List every knob: its default, its type and what it does."""
    listed = every_knob()
    wanted = [(name, field) for name, field in listed if name.startswith(section)]
    if not wanted:
        sections = dict.fromkeys(name.split(".")[0] for name, _ in listed)
        raise ConfigError(
            f"no knob begins with {section!r}.{nearest(section, sections)} There are {', '.join(sections)}"
        )
    for name, field in wanted:
        if name == "method":
            list_line("method.*: see microplane methods")
        else:
            default = "(must be given)" if field.is_required() else shown_default(field.default)
            list_line(f"{name} = {default} ({type_name(field)}): {field.description}")


def every_knob() -> list[tuple[str, FieldInfo]]:
    """Dotted names and declarations: of a run, of what is generated, of a mixture; methods' own apart."""
    from microplane.config.knobs import GenerateKnobs, RunKnobs
    from microplane.data.mixtures.spec import mixture_fields

    return [*fields(RunKnobs), *fields(GenerateKnobs, "generate."), *mixture_fields()]


def list_line(text: str) -> None:
    """A line of a list: in a terminal (or where COLUMNS says its width) broken between words, else whole for grep."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        indent = " " * (len(text) - len(text.lstrip()))
        width = max(20, shutil.get_terminal_size().columns)
        text = "\n".join(
            textwrap.wrap(
                text.strip(),
                width,
                initial_indent=indent,
                subsequent_indent=f"{indent}    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    typer.echo(text)


def shown_default(value: Any) -> str:
    return (
        json.dumps(value) if value is None or isinstance(value, str | bool | int | float | list | tuple) else str(value)
    )
