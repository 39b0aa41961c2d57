"""`microplane eval`: parse, call, print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microplane.cli.options import Base, Config, ModelName, Quiet, Set, SkipBadRows
from microplane.errors import ConfigError
from microplane.files import json_line

if TYPE_CHECKING:
    from microplane.config.knobs import RunKnobs
    from microplane.runs.suites import SuiteResult, SuiteScore


def evaluate(
    model: ModelName,
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="The rows to measure on: a file, or a folder.")
    ] = None,
    config: Config = None,
    set: Set = None,
    skip_bad_rows: SkipBadRows = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the answers to this JSONL file.")] = None,
    base: Base = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            metavar="NAMES",
            help="In place of DATA: tasks of lm-eval, as arc_easy,hellaswag (microplane[suites]).",
        ),
    ] = None,
    suite_folder: Annotated[
        Path | None, typer.Option("--suite-folder", metavar="DIR", help="Tasks of your own, in lm-eval's YAML.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each suite at most.")] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Examples before each question of a suite.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put a suite's questions into the model's chat template.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model or a run on DATA (- for standard input): the loss of all rows, and metrics of the answers to 100
    of them (--set eval.rows=N; 0 for none), or of a task head on all. With --suite on public tasks instead."""
    from microplane.config.build import assemble
    from microplane.runs.evaluate import check_out

    if suite is None:
        if data is None:
            raise ConfigError("give DATA, the rows to measure on, or --suite NAMES")
        if suite_folder or limit is not None or shots is not None or chat:
            raise ConfigError(
                "--suite-folder, --limit, --shots and --chat are for --suite; of DATA take --set eval.rows=N"
            )
        given = {"model.name": model, "data.train": data, "data.skip_bad_rows": skip_bad_rows or None}
        knobs = assemble(config, given, set or ())
        if out:
            check_out(out, knobs)
        _on_rows(knobs, out, base, json_, quiet)
        return
    other = [text for text in set or () if not text.startswith("model.")]
    if data is not None or skip_bad_rows or other:
        what = f"--set {other[0]}" if other else "DATA" if data is not None else "--skip-bad-rows"
        raise ConfigError(f"--suite brings its own rows and metrics: leave out {what}")
    knobs = assemble(config, {"model.name": model}, set or ())
    if out:
        check_out(out, knobs)
    names = [name.strip() for name in suite.split(",") if name.strip()]
    _on_suites(knobs, names, (suite_folder, limit, shots, chat), out, base, json_, quiet)


def _on_rows(knobs: RunKnobs, out: Path | None, base: str | None, json_: bool, quiet: bool) -> None:
    from microplane.cli.terminal import Terminal, make_console
    from microplane.evaluation.evaluate import class_lines, describe_scores
    from microplane.runs.evaluate import measure_file, write_answers
    from microplane.runs.inline_data import in_a_file

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
        beside: dict[str, Any] = {"by_class": measured["by_class"]} if measured["by_class"] else {}
        if "trained_rows" in measured:
            beside["trained_rows"] = measured["trained_rows"]
        typer.echo(json_line(scores | beside))
        return
    typer.echo(told)
    for line in class_lines(measured["by_class"]):
        typer.echo(line)


def _on_suites(
    knobs: RunKnobs,
    names: Sequence[str],
    how: tuple[Path | None, int | None, int | None, bool],
    out: Path | None,
    base: str | None,
    json_: bool,
    quiet: bool,
) -> None:
    from microplane.cli.terminal import Terminal, make_console
    from microplane.inference.pipeline import load
    from microplane.runs.suites import evaluate_suites

    folder, limit, shots, chat = how
    terminal = Terminal(make_console(stderr=True))
    watch = None if quiet else terminal
    try:
        loaded = load(knobs.model.name, knobs.model.dtype, knobs.model.revision, base, knobs.model.device)
        result = evaluate_suites(loaded, names, folder=folder, limit=limit, shots=shots, chat=chat, watch=watch)
    finally:
        terminal.close()
    if out:
        result.write_samples(out)
    typer.echo(json_line(result.to_dict()) if json_ else "\n".join(_table(result, limit)))


def _table(result: SuiteResult, limit: int | None) -> list[str]:
    """A line for each figure, in columns."""
    width = max((len(score.task) for score in result.scores), default=0)
    wide = max((len(score.metric) for score in result.scores), default=0)
    lines = [f"{score.task:{width}}  {score.metric:{wide}}  {_figure(score)}" for score in result.scores]
    first = f" (the first {limit:,} rows of each)" if limit else ""
    return [*lines, f"as lm-eval {result.lm_eval} counts them{first}"]


def _figure(score: SuiteScore) -> str:
    error = f" ± {score.error:.4f}" if score.error is not None else ""
    rows = f"  {score.rows:,} rows" if score.rows is not None else ""
    shots = f", {score.shots} shots" if score.shots else ""
    return f"{score.value:.4f}{error}{rows}{shots}"
