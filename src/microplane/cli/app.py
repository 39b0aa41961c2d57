"""The command line: parse, call, print. No logic; torch is imported below the commands, so that help is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from microplane.cli import interrupts, lists, options
from microplane.cli.adapters import convert, export, merge, push
from microplane.cli.cache import cache
from microplane.cli.check import check
from microplane.cli.compare import compare
from microplane.cli.embed import embed
from microplane.cli.evaluate import evaluate
from microplane.cli.machine import machine
from microplane.cli.mixture import mixture
from microplane.cli.model_list import models
from microplane.cli.options import (
    Base,
    Config,
    ModelName,
    Quiet,
    Set,
    SkipBadRows,
    SourceLanguage,
    TargetLanguage,
    assigned,
)
from microplane.cli.plan import plan
from microplane.cli.problems import fail, refuse_empty, tell_foreign
from microplane.cli.processes import is_first, start
from microplane.cli.runs import runs
from microplane.cli.serve import serve
from microplane.errors import ConfigError, MicroplaneError, notices_to
from microplane.files import json_line

app = typer.Typer(
    name="microplane",
    help="Fine-tune pretrained language models on the machine you have, and prove what was trained.",
    epilog="First steps:  microplane demo;  microplane data FILE --model smollm2;  microplane train smollm2 FILE",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The command line: errors of users become one message and exit code 1."""
    interrupts.arm()
    try:
        refuse_empty(sys.argv[1:])
        with notices_to(lambda text: typer.echo(text, err=True)):
            code = app(standalone_mode=False)
        if code == 130:  # typer's own word for KeyboardInterrupt
            interrupts.end()
        interrupts.disarm()
        sys.exit(code if isinstance(code, int) else 0)
    except MicroplaneError as error:
        if not is_first() and getattr(error, "told", True):  # the first process tells it
            sys.exit(1)
        fail(str(error))
    except KeyboardInterrupt:
        interrupts.end()
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if interrupts.received():  # foreign code made another exception of it
            interrupts.end()
        tell_foreign(error)
        raise


@app.command(epilog="Example:  microplane train smollm2 commands.jsonl --set method.rank=8 --set train.epochs=2")
def train(
    model: options.Model = None,
    data: options.Data = None,
    method: options.Method = None,
    name: options.RunName = None,
    lr: options.Rate = None,
    epochs: options.Epochs = None,
    rank: options.Rank = None,
    batch_size: options.BatchSize = None,
    max_length: options.MaxLength = None,
    seed: options.Seed = None,
    config: Config = None,
    set: Set = None,
    skip_bad_rows: SkipBadRows = False,
    resume: options.Resume = None,
    from_: options.From = None,
    track: options.Track = None,
    processes: options.Processes = None,
    json_: options.ResultAsJson = False,
    quiet: Quiet = False,
) -> None:
    """Adapt MODEL to DATA (- for standard input). Everything not said is inferred, printed, and written to run.yaml.

    The exit code is 0 when it is done, 3 when Ctrl-C stopped it in good order (all is saved; --resume goes on), 130
    when it was interrupted elsewhere, 1 for an error and 2 for wrong options."""
    if processes and processes > 1:
        start(processes, sys.argv[1:])
    from microplane.cli.terminal import Terminal, make_console, tell
    from microplane.config.build import assemble
    from microplane.hardware import process_started
    from microplane.runs import train as run

    plain = {"train.lr": lr, "train.epochs": epochs, "method.rank": rank, "train.batch_size": batch_size}
    plain |= {"data.max_length": max_length, "train.seed": seed}
    terminal = Terminal(make_console(stderr=json_))
    watch = None if quiet else terminal
    with interrupts.told_with_notes(terminal.close):
        if resume:
            if model or data or method or name or config or from_ or skip_bad_rows or track:
                raise ConfigError(f"--resume {resume} takes everything from that run; give it alone, or with --set")
            done = run.resume(resume, watch, assigned(plain, set or ()), process_started())
        else:
            model, data = (None, model) if from_ and data is None else (model, data)
            given: dict[str, Any] = {"model.name": model, "data.train": data, "method.name": method, "name": name}
            given |= {"model.adapter": from_, "data.skip_bad_rows": skip_bad_rows or None, "track": track}
            given |= {knob: value for knob, value in assigned(plain, set or ()).items() if plain.get(knob) is not None}
            done = run.train(knobs=assemble(config, given, set or ()), watch=watch, started=process_started())
    if is_first():
        if json_:
            typer.echo(json_line(done.result))
        elif quiet:
            typer.echo(done.folder)
        else:
            tell(done)
    _leave(done.result["status"])


def _leave(status: str) -> None:
    """A run that was stopped in good order has an exit code of its own."""
    if status == "stopped":
        raise typer.Exit(interrupts.STOPPED)


app.command(
    "eval",
    epilog="Example:  microplane eval runs/home test.jsonl;  microplane eval runs/home --suite arc_easy --limit 200",
)(evaluate)


@app.command(epilog='Example:  microplane generate runs/home "turn on the kitchen light" --set temperature=0.7')
def generate(
    model: ModelName,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT]...", help="One or more prompts; read from standard input, one a line, if none or -."
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", "-i", help="Chat; the conversation is kept. /new begins another, /quit ends."),
    ] = False,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    no_prefix: Annotated[
        bool, typer.Option("--no-prefix", help="Do not begin prompts with what all training prompts began with.")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, int8, nf4 or gguf.")] = "auto",
    base: Base = None,
    source_language: SourceLanguage = None,
    target_language: TargetLanguage = None,
    set: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="A line of JSON for each prompt.")] = False,
    quiet: Quiet = False,
) -> None:
    """Answer prompts with a model or a run, or label them where it has a task head (a tab parts two texts
    where it was trained on pairs).

    --set takes temperature, top_k, top_p, max_new_tokens, beams, stop, ..."""
    from microplane.cli.chat import answer_prompts, ask_as_told, chat, given_or_lines
    from microplane.config.build import build, set_value
    from microplane.config.knobs import GenerateKnobs
    from microplane.inference.pipeline import load

    values: dict[str, Any] = {}
    for assignment in set or []:
        set_value(values, assignment.removeprefix("generate."))  # as microplane knobs lists them
    knobs = build(GenerateKnobs, values)
    if dtype not in ("auto", "float32", "bfloat16", "int8", "nf4", "gguf"):
        raise ConfigError(f"--dtype {dtype}: possible are auto, float32, bfloat16, int8, nf4 and gguf")
    if interactive and (prompts or json_):
        raise ConfigError(
            "--interactive asks for its prompts itself and shows answers as they come; leave prompts and --json out"
        )
    loaded = load(model, dtype, base=base, source_language=source_language, target_language=target_language)
    ask_as_told(loaded, knobs, system, no_prefix)
    if loaded.prefix and not quiet:
        typer.echo(
            f"each prompt begins as in training, with {loaded.prefix.strip()!r} (--no-prefix leaves it out)", err=True
        )
    if interactive:
        chat(loaded, knobs)
    else:
        given = given_or_lines(prompts)
        if not given or not all(prompt.strip() for prompt in given):
            raise ConfigError("there is no prompt, or an empty one: give some text, or --interactive")
        answer_prompts(loaded, given, knobs, as_json=json_)


@app.command(epilog="Example:  microplane data commands.jsonl --model smollm2")
def data(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A data file (- for standard input), or a folder with train/validation/test."
        ),
    ],
    model: Annotated[str | None, typer.Option("--model", help="Show tokens as this model sees them.")] = None,
    config: Config = None,
    set: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show what was understood of FILE: format, rendered rows with the trained tokens marked, lengths, duplicates."""
    from microplane.cli.show_data import describe
    from microplane.cli.terminal import Terminal, make_console
    from microplane.config.build import assemble
    from microplane.data.progress import counting
    from microplane.runs.inline_data import in_a_file

    given = {"data.train": file} | ({"model.name": model} if model else {})
    knobs = assemble(config, given, set or ())
    terminal = Terminal(make_console(stderr=True))
    try:
        with in_a_file(knobs) as there:
            if model:
                from microplane.methods import make_method
                from microplane.runs.prepare import open_for_data

                opened = open_for_data(there, make_method(there.method), terminal)
                how = opened.tokenizer, opened.possible, counting(terminal), there.train.seed
                described = describe(opened.config.data, *how)
            else:
                described = describe(there.data, progress=counting(terminal))
    finally:
        terminal.close()
    if json_:
        typer.echo(json_line(described.facts))
    else:
        make_console().print(described)


app.command(epilog="Example:  microplane check smollm2 commands.jsonl --method lora")(check)
app.command(epilog="Example:  microplane plan smollm2 commands.jsonl --methods lora,qlora,full")(plan)
app.command(epilog="Example:  microplane machine --refresh")(machine)
app.command(epilog="Example:  microplane compare minilm reviews.csv --methods lora,full,head-only --budget 2h")(compare)
app.command(epilog="Example:  microplane runs runs")(runs)
app.command(epilog="Example:  microplane merge runs/home home-model --dtype bfloat16")(merge)
app.command(epilog="Example:  microplane export runs/home home.gguf --to gguf --dtype q8_0")(export)
app.command(epilog="Example:  microplane convert runs/home home-lora --rank 8")(convert)
app.command(epilog="Example:  microplane push runs/home me/home-commands --dry-run")(push)
app.command(epilog="Example:  microplane mixture mixture.yaml --rows 100000")(mixture)
app.command(epilog='Example:  microplane embed minilm "a man is eating food" "someone has a meal"')(embed)
app.command(epilog="Example:  microplane serve smollm2 --adapters runs")(serve)
app.command(epilog="Example:  microplane models --json")(models)
app.command(epilog="Example:  microplane methods")(lists.methods)
app.command(epilog="Example:  microplane knobs train")(lists.knobs)
app.add_typer(cache, name="cache", short_help="List and delete what is kept between runs, or show where it lies.")


@app.command(epilog="Example:  microplane report runs/home-lora runs/home-full")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs' folders; also of one that is going or has failed.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The page of several; side-by-side.html beside the first otherwise."
        ),
    ] = None,
) -> None:
    """Write a run's report.html again; or lay several finished runs side by side in one page that opens offline:
    settings that differ, metrics with intervals, learning curves, time, memory, answers to the same rows."""
    if len(runs) > 1:
        from microplane.comparison.side_by_side import write_side_by_side

        typer.echo(f"page: {write_side_by_side(runs, out)}")
        return
    from microplane.report.page import write_report

    if out is not None:
        raise ConfigError("--out is for the page of several runs; the report of one lies in its folder")
    typer.echo(f"report: {write_report(runs[0])}")


@app.command(epilog="Example:  microplane demo --lang fr")
def demo(
    lang: Annotated[str, typer.Option("--lang", help="en, fr or vi.")] = "en",
    rows: Annotated[int, typer.Option("--rows", help="Rows to train on.")] = 3000,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps to train for, in place of passes.")] = None,
    set: Set = None,
) -> None:
    """Teach a small model to turn home commands into JSON: fetch, measure, train, measure again, show, report."""
    from microplane.cli.demo import run_demo
    from microplane.cli.terminal import tell

    done = run_demo(lang, rows, [*([f"train.steps={steps}"] if steps else []), *(set or [])])
    tell(done)
    _leave(done.result["status"])


@app.command(epilog="Example:  microplane version")
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"microplane {installed('microplane')}")


if __name__ == "__main__":
    main()
