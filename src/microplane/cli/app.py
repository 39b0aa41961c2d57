"""The command line: parse, call, print. No logic; torch is imported below the commands, so that help is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from microplane.cli.adapters import convert, merge
from microplane.cli.cache import cache
from microplane.cli.embed import embed
from microplane.cli.mixture import mixture
from microplane.config.build import fields
from microplane.config.knobs import RunKnobs
from microplane.errors import ConfigError, MicroplaneError, nearest, notices_to

app = typer.Typer(
    name="microplane",
    help="Fine-tune pretrained language models on the machine you have, and prove what was trained.",
    epilog="First steps:  microplane demo;  microplane data FILE --model smollm2;  microplane train smollm2 FILE",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Count bad rows and go on, instead of refusing the file.")
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A short name (microplane models), folder, .gguf file, Hub name, or run folder."
    ),
]


def main() -> None:
    """The console script: errors of users become one message and exit code 1."""
    try:
        with notices_to(lambda text: typer.echo(text, err=True)):
            app(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except MicroplaneError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno not in _DISK):
            raise
        fail(f"{error.filename or 'writing a file'}: {error.strerror}. {_DISK.get(error.errno, '')}".rstrip())
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _tell_usage(error)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            fail("the memory of this machine does not suffice. Try a smaller train.micro_tokens or eval.batch_tokens")
        raise


_ELSEWHERE = "Choose another place; for runs it is --set runs=FOLDER, for the cache the variable MICROPLANE_CACHE."
_ROOM = "Make room, and try again; a run that had begun goes on with microplane train --resume RUN."
_DISK = {28: _ROOM, 122: _ROOM, 30: _ELSEWHERE, 13: _ELSEWHERE}  # full, over the quota, read-only, not allowed


def _tell_usage(error: Any) -> NoReturn:
    """Errors of typer itself, such as an unknown option, told as all others are. Without arguments there is help."""

    if not error.format_message().strip() or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    option = getattr(error, "option_name", None)
    known = option and knob_for_option(str(option))
    message = f"there is no option {option}.{known}" if known else error.format_message()
    place = getattr(getattr(error, "ctx", None), "command_path", "microplane")
    fail(f"{message.rstrip('.')}. See {place} --help", error.exit_code)


def fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


@app.command(epilog="Example:  microplane train smollm2 commands.jsonl --set method.rank=8 --set train.epochs=2")
def train(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A short name (microplane models), folder, .gguf file or Hub name."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="JSONL, JSON, CSV or Parquet file, a folder with train/validation/test, or a mixture.",
        ),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="How to adapt; list: microplane methods")] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Of the run's folder.")] = None,
    config: Config = None,
    set: Set = None,
    skip_bad_rows: SkipBadRows = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run's folder, bit for bit.")
    ] = None,
) -> None:
    """Adapt MODEL to DATA. Everything not said is inferred, printed, and written to run.yaml."""
    from microplane.cli.terminal import Terminal, make_console, tell
    from microplane.config.build import assemble
    from microplane.runs import train as run

    terminal = Terminal(make_console())
    try:
        if resume:
            if model or data or method or name or config or set or skip_bad_rows:
                raise ConfigError(f"--resume {resume} takes everything from that run; give it alone")
            done = run.resume(resume, terminal)
        else:
            given: dict[str, Any] = {"model.name": model, "data.train": data, "method.name": method, "name": name}
            given["data.skip_bad_rows"] = skip_bad_rows or None
            done = run.train(knobs=assemble(config, given, set or ()), watch=terminal)
    finally:
        terminal.close()
    tell(done)


@app.command(
    "eval", epilog="Example:  microplane eval runs/home test.jsonl --set eval.metrics=[exact_match,json_valid]"
)
def evaluate(
    model: ModelName,
    data: Annotated[str, typer.Argument(metavar="DATA", help="The rows to measure on: a file, or a folder.")],
    config: Config = None,
    set: Set = None,
    skip_bad_rows: SkipBadRows = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the answers to this JSONL file.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Measure a model or a run on DATA: the loss of all rows, and metrics of the answers to 100 of them
    (--set eval.rows=N; 0 for none), or of a task head on all."""
    from microplane.cli.terminal import Terminal, make_console
    from microplane.config.build import assemble
    from microplane.evaluation.evaluate import class_lines, describe_scores
    from microplane.runs.evaluate import check_out, measure_file, write_answers

    given = {"model.name": model, "data.train": data, "data.skip_bad_rows": skip_bad_rows or None}
    knobs = assemble(config, given, set or ())
    if out:
        check_out(out, knobs)
    terminal = Terminal(make_console(stderr=True))
    try:
        measured = measure_file(knobs, terminal)
    finally:
        terminal.close()
    if out:
        write_answers(out, measured)
    scores, answers = measured["scores"], len(measured["texts"])
    generated = answers and "perplexity" in scores  # a task head is measured on all rows
    told = describe_scores(scores) + (f"; metrics of the answers to {answers:,} rows" if generated else "")
    if json_:
        classes = {"by_class": measured["by_class"]} if measured["by_class"] else {}
        typer.echo(json.dumps(scores | classes))
        return
    typer.echo(told)
    for line in class_lines(measured["by_class"]):
        typer.echo(line)


@app.command(epilog='Example:  microplane generate runs/home "turn on the kitchen light" --set temperature=0.7')
def generate(
    model: ModelName,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="One or more prompts; read from standard input if there are none."),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", "-i", help="Chat; the conversation is kept. /new begins another, /quit ends."),
    ] = False,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    no_prefix: Annotated[
        bool, typer.Option("--no-prefix", help="Do not begin prompts with what all training prompts began with.")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, int8 or nf4.")] = "auto",
    set: Set = None,
) -> None:
    """Answer prompts with a model or a run, or label them where it has a task head (a tab parts two texts
    where it was trained on pairs).

    --set takes temperature, top_k, top_p, max_new_tokens, beams, stop, ..."""
    from microplane.cli.chat import answer_prompts, ask_as_told, chat, read_lines
    from microplane.config.build import build, set_value
    from microplane.config.knobs import GenerateKnobs
    from microplane.inference.pipeline import load

    values: dict[str, Any] = {}
    for assignment in set or []:
        set_value(values, assignment.removeprefix("generate."))  # as microplane knobs lists them
    knobs = build(GenerateKnobs, values)
    if dtype not in ("auto", "float32", "bfloat16", "int8", "nf4"):
        raise ConfigError(f"--dtype {dtype}: possible are auto, float32, bfloat16, int8 and nf4")
    if interactive and prompts:
        raise ConfigError("--interactive asks for its prompts itself; leave them out")
    loaded = load(model, dtype)
    ask_as_told(loaded, knobs, system, no_prefix)
    if loaded.prefix:
        typer.echo(
            f"each prompt begins as in training, with {loaded.prefix.strip()!r} (--no-prefix leaves it out)", err=True
        )
    if interactive:
        chat(loaded, knobs)
    else:
        given = prompts or read_lines()
        if not given or not all(prompt.strip() for prompt in given):
            raise ConfigError("there is no prompt, or an empty one: give some text, or --interactive")
        answer_prompts(loaded, given, knobs)


@app.command(epilog="Example:  microplane data commands.jsonl --model smollm2")
def data(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A data file, or a folder with train/validation/test.")],
    model: Annotated[str | None, typer.Option("--model", help="Show tokens as this model sees them.")] = None,
    config: Config = None,
    set: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show what was understood of FILE: format, rendered rows with the trained tokens marked, lengths, duplicates."""
    from microplane.cli.show_data import describe
    from microplane.cli.terminal import make_console
    from microplane.config.build import assemble
    from microplane.data.tokenizers.load import load_tokenizer
    from microplane.models.files.hub import resolve
    from microplane.models.files.load import build_on_meta, open_checkpoint
    from microplane.objectives.select import candidates

    knobs = assemble(config, {"data.train": file}, set or ())
    if model:
        path = resolve(model)
        described = describe(
            knobs.data, load_tokenizer(path), candidates(build_on_meta(open_checkpoint(path)), knobs.data)
        )
    else:
        described = describe(knobs.data)
    if json_:
        typer.echo(json.dumps(described.facts, ensure_ascii=False))
    else:
        make_console().print(described)


app.command(epilog="Example:  microplane merge runs/home home-model --dtype bfloat16")(merge)
app.command(epilog="Example:  microplane convert runs/home home-lora --rank 8")(convert)
app.command(epilog="Example:  microplane mixture mixture.yaml --rows 100000")(mixture)
app.command(epilog='Example:  microplane embed minilm "a man is eating food" "someone has a meal"')(embed)
app.add_typer(cache, name="cache", short_help="List and delete what is kept between runs, or show where it lies.")


@app.command(epilog="Example:  microplane models")
def models() -> None:
    """List the models with a short name, what is already here, and the architectures that can be opened."""
    from rich.table import Table

    from microplane.cli.terminal import make_console
    from microplane.models.families import ARCHITECTURES
    from microplane.models.files.hub import SHORT_NAMES, is_cached

    table = Table("short name", "model", "size", "here", box=None, pad_edge=False)
    for name, entry in SHORT_NAMES.items():
        table.add_row(
            name, entry.title, f"{entry.bytes / 1e6:.0f} MB", "yes" if is_cached(name) else "fetched at first use"
        )
    console = make_console()
    console.print(table)
    console.print(f"\narchitectures: {', '.join(ARCHITECTURES)}", markup=False)
    console.print(
        "from: a Hugging Face folder, a .gguf file, or a Hub name such as HuggingFaceTB/SmolLM2-360M-Instruct"
    )


@app.command(epilog="Example:  microplane methods")
def methods(
    table: Annotated[bool, typer.Option("--table", help="Only the facts, as docs/methods/README.md has them.")] = False,
) -> None:
    """List the methods, their facts and their knobs."""
    from microplane.config.build import fields, type_name
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
        typer.echo(f"{name}: {method.summary}{f' (from the package {package})' if package else ''}")
        typer.echo(f"  {told}; default train.lr: {method.default_lr:g}")
        for knob, field in fields(method):
            typer.echo(f"  method.{knob} = {_shown(field.default)} ({type_name(field)}): {field.description}")


@app.command(epilog="Example:  microplane knobs train")
def knobs(
    section: Annotated[str, typer.Argument(help="Only those that begin so, as in train or generate.")] = "",
) -> None:
    """List every knob: its default, its type and what it does."""
    from microplane.config.build import fields, type_name
    from microplane.config.knobs import GenerateKnobs, RunKnobs
    from microplane.data.mixtures.spec import mixture_fields

    listed = [*fields(RunKnobs), *fields(GenerateKnobs, "generate."), *mixture_fields()]
    wanted = [(name, field) for name, field in listed if name.startswith(section)]
    if not wanted:
        sections = dict.fromkeys(name.split(".")[0] for name, _ in listed)
        raise ConfigError(
            f"no knob begins with {section!r}.{nearest(section, sections)} There are {', '.join(sections)}"
        )
    for name, field in wanted:
        if name == "method":
            typer.echo("method.*: see microplane methods")
        else:
            default = "(must be given)" if field.is_required() else _shown(field.default)
            typer.echo(f"{name} = {default} ({type_name(field)}): {field.description}")


def _shown(value: Any) -> str:
    return (
        json.dumps(value) if value is None or isinstance(value, str | bool | int | float | list | tuple) else str(value)
    )


@app.command(epilog="Example:  microplane report runs/home")
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder; also of one that is still going or has failed.")
    ],
) -> None:
    """Write the run's report.html again."""
    from microplane.report.page import write_report

    typer.echo(f"report: {write_report(run)}")


@app.command(epilog="Example:  microplane demo --lang fr")
def demo(
    lang: Annotated[str, typer.Option("--lang", help="en, fr or vi.")] = "en",
    rows: Annotated[int, typer.Option("--rows", help="Rows to train on.")] = 3000,
    set: Set = None,
) -> None:
    """Teach a small model to turn home commands into JSON: fetch, measure, train, measure again, show, report."""
    from microplane.cli.demo import run_demo
    from microplane.cli.terminal import tell

    tell(run_demo(lang, rows, set or []))


@app.command(epilog="Example:  microplane version")
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"microplane {installed('microplane')}")


if __name__ == "__main__":
    main()


def knob_for_option(option: str) -> str:
    """How to set the knob that somebody took for an option, as `--lr`; empty if there is none like it."""
    name = option.lstrip("-").replace("-", "_")
    known = [known for known, _ in fields(RunKnobs) if known.rsplit(".", 1)[-1] == name]
    return f" Knobs are set with --set, as in --set {known[0]}=VALUE." if known else ""
