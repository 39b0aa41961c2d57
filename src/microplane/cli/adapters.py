"""The commands `microplane merge`, `export` and `convert`, as `cli/app.py` has the others: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microplane.cli.options import Base
from microplane.exports.formats import choices

if TYPE_CHECKING:
    import torch


def merge(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or an adapter's (also one that peft wrote).")
    ],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="The new model folder.")],
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16 or float16; auto: as the base is stored.")
    ] = "auto",
    base: Base = None,
) -> None:
    """Write base + adapter as one plain Hugging Face folder, and state how far its logits are from unmerged."""
    from microplane.adapters.merge import merge as merge_adapter

    for line in merge_adapter(run, out, _dtype(dtype), base).lines():
        typer.echo(line)


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL", help="A run's folder, an adapter's, or a model: name, .gguf file, folder."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="FOLDER_OR_FILE", help="What is written.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"{choices()}.")] = "hf",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of the weights; which there are depends on the format.")
    ] = None,
    base: Base = None,
) -> None:
    """Write a model in the format of another tool, an adapter merged where the format holds a whole model, and compare
    what that tool computes with what was trained (docs/exports.md)."""
    from microplane.exports.export import export as export_model

    for line in export_model(model, out, to, dtype, base).lines:
        typer.echo(line)


def push(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_FOLDER", help="A run, an adapter, or a folder that merge or export wrote."),
    ],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="On the Hub; made where there is none.")],
    merged: Annotated[bool, typer.Option("--merged", help="The adapter merged into its base, not alone.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; private otherwise. One that exists stays.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and send nothing.")] = False,
    message: Annotated[str | None, typer.Option("--message", help="Of the commit.")] = None,
    base: Base = None,
) -> None:
    """Upload a run's adapter, its merged model or an exported folder to the Hub, with its model card.

    HF_TOKEN holds the token. Nothing else of the run goes: not its rows, answers or report."""
    from microplane.exports.push import push as push_folder
    from microplane.report.words import size

    done = push_folder(source, repository, merged, public, dry_run, message, base)
    for name, count in done.files:
        typer.echo(f"{size(count):>10}  {name}")
    for notice in done.notices:
        typer.echo(f"note: {notice}")
    kind = "public" if done.public else "private"
    total = size(sum(count for _, count in done.files))
    if done.address is None:
        typer.echo(f"nothing was sent; {total} would go to {repository}, {kind} if it is new")
    else:
        typer.echo(f"pushed {total} to {repository}: {done.address}")


def _dtype(name: str) -> torch.dtype | None:
    import torch

    from microplane.errors import ConfigError

    kinds = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in kinds:
        raise ConfigError(f"--dtype {name}: possible are {', '.join(kinds)}")
    return kinds[name]


def convert(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or an adapter's.")],
    out: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="The new adapter; RUN-lora otherwise.")] = None,
    to: Annotated[str, typer.Option("--to", help="What to write: lora, in peft's format.")] = "lora",
    rank: Annotated[int | None, typer.Option("--rank", help="Of the LoRA; the adapter's own otherwise, or 16.")] = None,
    base: Base = None,
) -> None:
    """Write an adapter of another method as plain LoRA: exactly where it is one, else the nearest, with its error."""
    from microplane.adapters.convert import convert as convert_adapter
    from microplane.errors import ConfigError
    from microplane.files import named

    if to != "lora":
        raise ConfigError(f"--to {to}: possible is lora")
    run = named(run)
    for line in convert_adapter(run, out or run.with_name(f"{run.name}-lora"), rank, base).lines():
        typer.echo(line)
