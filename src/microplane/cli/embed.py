"""`microplane embed`: sentence embeddings as JSON lines."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from microplane.cli.options import Base


def embed(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Short name (microplane models), folder, Hub name, or run folder.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="One or more texts; from standard input, one a line, if none or -."),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            "--pooling",
            help="mean, cls or last; by default as the model's folder says, else an encoder's mean, or the last token.",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")] = "auto",
    base: Base = None,
) -> None:
    """Embed texts: a line of JSON for each, with a vector of length 1. The product of two vectors is their cosine."""
    from microplane.cli.chat import given_or_lines, texts_of
    from microplane.errors import ConfigError
    from microplane.inference.pipeline import load

    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"--dtype {dtype}: possible are auto, float32 and bfloat16")
    given = given_or_lines(texts)
    if not given:
        raise ConfigError("there is no text: give some, or lines on standard input")
    loaded = load(model, dtype, base=base)
    vectors = loaded.embed([texts_of(text, loaded.pairs) for text in given], pooling)
    for text, vector in zip(given, vectors.tolist(), strict=True):
        typer.echo(json.dumps({"text": text, "embedding": [round(x, 7) for x in vector]}, ensure_ascii=False))
