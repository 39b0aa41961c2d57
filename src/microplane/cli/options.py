"""Arguments and options of the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from microplane.errors import ConfigError

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="Set any knob, as in train.lr=5e-4; repeat for more. List: microplane knobs",
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Knobs from a YAML file, such as a run.yaml.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only what is asked for.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Count bad rows and go on, instead of refusing the file.")
]
Base = Annotated[str | None, typer.Option("--base", help="Where the adapter's base is, if not where the adapter says.")]
SourceLanguage = Annotated[
    str | None, typer.Option("--source-language", help="Of a translation model: what it reads, as eng_Latn.")
]
TargetLanguage = Annotated[str | None, typer.Option("--target-language", help="And what it writes.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A short name (microplane models), folder, .gguf file, Hub name, or run folder."
    ),
]

# Of `train` alone

Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A short name (microplane models), folder, .gguf file or Hub name."),
]
Data = Annotated[
    str | None,
    typer.Argument(
        metavar="[DATA]",
        help="JSONL, JSON, CSV or Parquet file, a folder with train/validation/test, a mixture, or hf://org/name:split.",
    ),
]
Method = Annotated[
    str | None, typer.Option("--method", "-m", help="How to adapt, or auto (docs/auto.md); list: microplane methods")
]
RunName = Annotated[str | None, typer.Option("--name", "-n", help="Of the run's folder.")]
Rate = Annotated[str | None, typer.Option("--lr", metavar="NUMBER", help="train.lr, the peak learning rate.")]
Epochs = Annotated[str | None, typer.Option("--epochs", metavar="NUMBER", help="train.epochs.")]
Rank = Annotated[str | None, typer.Option("--rank", metavar="NUMBER", help="method.rank; auto: found for you.")]
BatchSize = Annotated[
    str | None, typer.Option("--batch-size", metavar="ROWS", help="train.batch_size, of an optimizer step.")
]
MaxLength = Annotated[str | None, typer.Option("--max-length", metavar="TOKENS", help="data.max_length, of a row.")]
Seed = Annotated[str | None, typer.Option("--seed", metavar="NUMBER", help="train.seed.")]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Go on with this run's folder, bit for bit; with --set train.epochs=3 also of a finished one.",
    ),
]
From = Annotated[
    str | None, typer.Option("--from", metavar="RUN", help="Begin with this run's adapter (leave MODEL out).")
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="NAME", help="Also tell tensorboard, wandb, mlflow or trackio; repeat for more."),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", metavar="N", min=1, help="Train on N processes of this machine, each on a share of every step."
    ),
]
ResultAsJson = Annotated[
    bool, typer.Option("--json", help="Print result.json at the end; progress goes to standard error.")
]


def assigned(plain: Mapping[str, str | None], assignments: Sequence[str]) -> dict[str, Any]:
    """Values by dotted name, of plain options and of --set.

    Raises:
        ConfigError: for a knob that both give, and not alike.
    """
    from microplane.config.build import parse_value, split_assignment

    given = {name: parse_value(text) for name, text in plain.items() if text is not None}
    for name, value in map(split_assignment, assignments):
        if name in given and plain.get(name) is not None and given[name] != value:
            raise ConfigError(f"{name} is given twice: as {given[name]!r}, and with --set {name}={value}")
        given[name] = value
    return given
