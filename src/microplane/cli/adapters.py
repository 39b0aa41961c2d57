"""The commands `microplane merge`, `export` and `convert`, as `cli/app.py` has the others: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microplane.cli.options import Base

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

    merged = merge_adapter(run, out, _dtype(dtype), base)
    name = str(merged.dtype).removeprefix("torch.")
    typer.echo(f"merged into {merged.folder} as {name}")
    typer.echo(
        f"largest logit difference on {merged.rows} stored rows: {merged.difference:.2e} merged against unmerged"
    )
    if merged.rounded != merged.difference:
        typer.echo(f"after rounding the weights to {name}: {merged.rounded:.2e}")
    if merged.trained_base:
        typer.echo(
            f"the adapter was trained on the base in {merged.trained_base} and is merged into the original one: "
            f"largest logit difference {merged.from_trained:.2e} to what was trained"
        )
    for line in merged.notices:
        typer.echo(line)


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A short name, a .gguf file, a folder, or a Hub name.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="The new model folder.")],
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16 or float16; auto: as the model is stored.")
    ] = "auto",
) -> None:
    """Write a base model as one plain Hugging Face folder, which other tools open and adapters can name."""
    from microplane.adapters.export import export as export_model

    exported = export_model(model, out, _dtype(dtype))
    typer.echo(f"wrote {exported.folder} as {str(exported.dtype).removeprefix('torch.')}")
    for line in exported.notices:
        typer.echo(line)


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
