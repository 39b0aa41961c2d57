"""The command line: parse, call, print. No logic; torch is imported below the commands, so that help is instant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from microplane.cli import interrupts
from microplane.cli.adapters import Base, convert, export, merge
from microplane.cli.cache import cache
from microplane.cli.embed import embed
from microplane.cli.mixture import mixture
from microplane.config.build import fields
from microplane.config.knobs import RunKnobs
from microplane.config.other_names import OTHER_NAMES, meaning
from microplane.errors import ConfigError, MicroplaneError, nearest, notices_to

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
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A short name (microplane models), folder, .gguf file, Hub name, or run folder."
    ),
]


def main() -> None:
    """The command line: errors of users become one message and exit code 1."""
    interrupts.arm()
    try:
        with notices_to(lambda text: typer.echo(text, err=True)):
            code = app(standalone_mode=False)
        if code == 130:  # typer's own word for KeyboardInterrupt
            interrupts.end()
        interrupts.disarm()
        sys.exit(code if isinstance(code, int) else 0)
    except MicroplaneError as error:
        fail(str(error))
    except KeyboardInterrupt:
        interrupts.end()
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if interrupts.received():  # foreign code made another exception of it
            interrupts.end()
        _tell(error)
        raise


def _tell(error: Exception) -> None:
    """What is no defect of ours ends here, with one message."""
    if isinstance(error, OSError):
        if error.errno is None or (error.filename is None and error.errno not in _DISK):
            return
        if error.errno == 13 and os.path.isfile(error.filename) and not os.access(error.filename, os.R_OK):
            fail(f"{error.filename} cannot be read: {error.strerror}. Allow reading it, and try again")
        fail(f"{error.filename or 'writing a file'}: {error.strerror}. {_DISK.get(error.errno, '')}".rstrip())
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        _tell_usage(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        fail("the memory of this machine does not suffice. Try a smaller train.micro_tokens or eval.batch_tokens")


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


def to_json(value: Any) -> str:
    """On one line. JSON has no NaN and no infinity: they become null."""
    from microplane.files import json_value

    return json.dumps(json_value(value), ensure_ascii=False, allow_nan=False)


def fail(message: str, code: int = 1) -> NoReturn:
    interrupts.disarm()
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
    lr: Annotated[str | None, typer.Option("--lr", metavar="NUMBER", help="train.lr, the peak learning rate.")] = None,
    epochs: Annotated[str | None, typer.Option("--epochs", metavar="NUMBER", help="train.epochs.")] = None,
    rank: Annotated[str | None, typer.Option("--rank", metavar="NUMBER", help="method.rank.")] = None,
    batch_size: Annotated[
        str | None, typer.Option("--batch-size", metavar="ROWS", help="train.batch_size, of an optimizer step.")
    ] = None,
    max_length: Annotated[
        str | None, typer.Option("--max-length", metavar="TOKENS", help="data.max_length, of a row.")
    ] = None,
    seed: Annotated[str | None, typer.Option("--seed", metavar="NUMBER", help="train.seed.")] = None,
    config: Config = None,
    set: Set = None,
    skip_bad_rows: SkipBadRows = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with this run's folder, bit for bit; with --set train.epochs=3 also of a finished one.",
        ),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Begin with this run's adapter (leave MODEL out).")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print result.json at the end; progress goes to standard error.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Adapt MODEL to DATA (- for standard input). Everything not said is inferred, printed, and written to run.yaml.

    The exit code is 0 when it is done, 3 when Ctrl-C stopped it in good order (all is saved; --resume goes on), 130
    when it was interrupted elsewhere, 1 for an error and 2 for wrong options."""
    from microplane.cli.terminal import Terminal, make_console, tell
    from microplane.config.build import assemble
    from microplane.hardware import process_started
    from microplane.runs import train as run

    plain = {"train.lr": lr, "train.epochs": epochs, "method.rank": rank, "train.batch_size": batch_size}
    plain |= {"data.max_length": max_length, "train.seed": seed}
    terminal = Terminal(make_console(stderr=json_))
    watch = None if quiet else terminal
    try:
        if resume:
            if model or data or method or name or config or from_ or skip_bad_rows:
                raise ConfigError(f"--resume {resume} takes everything from that run; give it alone, or with --set")
            done = run.resume(resume, watch, assigned(plain, set or ()), process_started())
        else:
            if from_ and data is None:
                model, data = None, model
            given: dict[str, Any] = {"model.name": model, "data.train": data, "method.name": method, "name": name}
            given |= {"model.adapter": from_}
            given["data.skip_bad_rows"] = skip_bad_rows or None
            given |= {knob: value for knob, value in assigned(plain, set or ()).items() if plain.get(knob) is not None}
            done = run.train(knobs=assemble(config, given, set or ()), watch=watch, started=process_started())
    except KeyboardInterrupt as error:
        terminal.close()
        interrupts.end(getattr(error, "__notes__", ()))
    finally:
        terminal.close()
    if json_:
        typer.echo(json.dumps(done.result, ensure_ascii=False, allow_nan=False))
    elif quiet:
        typer.echo(done.folder)
    else:
        tell(done)
    _leave(done.result["status"])


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


def _leave(status: str) -> None:
    """A run that was stopped in good order has an exit code of its own."""
    if status == "stopped":
        raise typer.Exit(interrupts.STOPPED)


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
    base: Base = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model or a run on DATA (- for standard input): the loss of all rows, and metrics of the answers to 100
    of them (--set eval.rows=N; 0 for none), or of a task head on all."""
    from microplane.cli.terminal import Terminal, make_console
    from microplane.config.build import assemble
    from microplane.evaluation.evaluate import class_lines, describe_scores
    from microplane.runs.evaluate import check_out, measure_file, write_answers
    from microplane.runs.inline_data import in_a_file

    given = {"model.name": model, "data.train": data, "data.skip_bad_rows": skip_bad_rows or None}
    knobs = assemble(config, given, set or ())
    if out:
        check_out(out, knobs)
    terminal = Terminal(make_console(stderr=True))
    try:
        with in_a_file(knobs) as there:
            measured = measure_file(there, None if quiet else terminal, base)
    finally:
        terminal.close()
    if out:
        write_answers(out, measured)
    scores, answers = measured["scores"], len(measured["texts"])
    generated = answers and "perplexity" in scores  # a task head is measured on all rows
    told = describe_scores(scores) + (f"; metrics of the answers to {answers:,} rows" if generated else "")
    if json_:
        classes = {"by_class": measured["by_class"]} if measured["by_class"] else {}
        typer.echo(to_json(scores | classes))
        return
    typer.echo(told)
    for line in class_lines(measured["by_class"]):
        typer.echo(line)


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
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, int8 or nf4.")] = "auto",
    base: Base = None,
    set: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="A line of JSON for each prompt.")] = False,
    quiet: Quiet = False,
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
    if interactive and (prompts or json_):
        raise ConfigError(
            "--interactive asks for its prompts itself and shows answers as they come; leave prompts and --json out"
        )
    loaded = load(model, dtype, base=base)
    ask_as_told(loaded, knobs, system, no_prefix)
    if loaded.prefix and not quiet:
        typer.echo(
            f"each prompt begins as in training, with {loaded.prefix.strip()!r} (--no-prefix leaves it out)", err=True
        )
    if interactive:
        chat(loaded, knobs)
    else:
        given = read_lines() if not prompts or prompts == ["-"] else prompts
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
        typer.echo(to_json(described.facts))
    else:
        make_console().print(described)


app.command(epilog="Example:  microplane merge runs/home home-model --dtype bfloat16")(merge)
app.command(epilog="Example:  microplane export smollm2 smollm2-folder --dtype bfloat16")(export)
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
    typer.echo()
    list_line(f"architectures: {', '.join(ARCHITECTURES)}")
    list_line("from: a Hugging Face folder, a .gguf file, or a Hub name such as HuggingFaceTB/SmolLM2-360M-Instruct")


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
        list_line(f"{name}: {method.summary}{f' (from the package {package})' if package else ''}")
        list_line(f"  {told}; default train.lr: {method.default_lr:g}")
        for knob, field in fields(method):
            list_line(f"  method.{knob} = {_shown(field.default)} ({type_name(field)}): {field.description}")


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
            list_line("method.*: see microplane methods")
        else:
            default = "(must be given)" if field.is_required() else _shown(field.default)
            list_line(f"{name} = {default} ({type_name(field)}): {field.description}")


def list_line(text: str) -> None:
    """A line of a list: in a terminal (or where COLUMNS says its width) broken between words, else whole for grep."""
    import shutil
    import textwrap

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

    done = run_demo(lang, rows, set or [])
    tell(done)
    _leave(done.result["status"])


@app.command(epilog="Example:  microplane version")
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"microplane {installed('microplane')}")


def knob_for_option(option: str) -> str:
    """How to set the knob that somebody took for an option, as `--clip`; empty if there is none like it."""
    name = option.lstrip("-").replace("-", "_")
    known = next((known for known, _ in fields(RunKnobs) if known.rsplit(".", 1)[-1] == name), None)
    if known is None and name in OTHER_NAMES:
        known = OTHER_NAMES[name]
    if known is None:
        return meaning(name)
    return f" Knobs are set with --set, as in --set {known}{'' if '=' in known else '=VALUE'}."


if __name__ == "__main__":
    main()
