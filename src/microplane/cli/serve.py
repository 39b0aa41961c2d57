"""`microplane serve`: models and adapters behind OpenAI's API, and a page to try them."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from microplane.cli import interrupts
from microplane.cli.options import Base, SourceLanguage, TargetLanguage
from microplane.config.serving import ServeKnobs

DEFAULTS = ServeKnobs()


def _option(knob: str) -> Any:
    said = str(ServeKnobs.model_fields[knob].description)
    return typer.Option(f"--{knob.replace('_', '-')}", help=f"{said[0].upper()}{said[1:]}.")


Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="BASE_OR_RUN...",
        help="Short name (microplane models), folder, .gguf file or Hub name of a base; a run's or an adapter's folder "
        "with its base.",
    ),
]
Adapters = Annotated[
    Path | None,
    typer.Option(
        "--adapters",
        metavar="FOLDER",
        help="Serve every run and adapter in this folder, also those that come, change or go while it runs.",
    ),
]
Host = Annotated[str, typer.Option("--host", help="Where to listen; one that other machines can reach needs a token.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="Holds the token of all requests; else MICROPLANE_TOKEN, or none."
    ),
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto (as each adapter was trained), float32, bfloat16, int8, nf4, gguf.")
]
Device = Annotated[str, typer.Option("--device", help="As model.device: auto, cpu, cuda, ...")]


def serve(
    models: Models = None,
    adapters: Adapters = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_file: TokenFile = None,
    max_batch: Annotated[int, _option("max_batch")] = DEFAULTS.max_batch,
    batch_tokens: Annotated[int, _option("batch_tokens")] = DEFAULTS.batch_tokens,
    queue: Annotated[int, _option("queue")] = DEFAULTS.queue,
    timeout: Annotated[float, _option("timeout")] = DEFAULTS.timeout,
    max_tokens: Annotated[int, _option("max_tokens")] = DEFAULTS.max_tokens,
    max_body: Annotated[int, _option("max_body")] = DEFAULTS.max_body,
    grace: Annotated[float, _option("grace")] = DEFAULTS.grace,
    dtype: Dtype = "auto",
    device: Device = "auto",
    base: Base = None,
    source_language: SourceLanguage = None,
    target_language: TargetLanguage = None,
) -> None:
    """Serve models and many adapters over one base: OpenAI's API under /v1 (chat, completions, embeddings, classify),
    and at / a page on which two models answer side by side.

    A request's "model" chooses: the base, or an adapter by its folder's name. Rows of all LoRA-like adapters are
    computed in one batch with the base; other methods take turns. Answers are greedy unless a request asks for a
    temperature. /health and /metrics (Prometheus) tell how it is. SIGTERM and Ctrl-C finish what runs. More is in
    docs/serve.md."""
    from microplane.errors import ConfigError

    if not models and adapters is None:
        raise ConfigError("there is nothing to serve: name a base or a run, or a folder with --adapters")
    if dtype not in ("auto", "float32", "bfloat16", "int8", "nf4", "gguf"):
        raise ConfigError(f"--dtype {dtype}: possible are auto, float32, bfloat16, int8, nf4 and gguf")
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise ConfigError(f"serving needs {' and '.join(missing)}: pip install 'microplane[serve]'")
    from microplane.config.build import build
    from microplane.serving.library import Library
    from microplane.serving.run import serve as run

    values = {"max_batch": max_batch, "batch_tokens": batch_tokens, "queue": queue, "timeout": timeout}
    values |= {"max_tokens": max_tokens, "max_body": max_body, "grace": grace}
    knobs = build(ServeKnobs, values)
    library = Library(dtype, device, base, source_language, target_language)
    try:
        run(models or [], adapters, host, port, _token(token_file), knobs, library, _say)
    except KeyboardInterrupt:
        if not interrupts.received():
            raise
        interrupts.forget()  # what ran is finished: the server passes the signal on when it is done
        _say("ended")


def _say(line: str) -> None:
    with suppress(OSError):  # whoever read this is gone, and those who ask the server are not
        typer.echo(line, err=True)


def _token(file: Path | None) -> str | None:
    from microplane.errors import ConfigError

    if file is None:
        return os.environ.get("MICROPLANE_TOKEN") or None
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--token-file {file} cannot be read: {error}") from None
    if not token:
        raise ConfigError(f"--token-file {file} is empty")
    return token
