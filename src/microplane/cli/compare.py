"""`microplane compare`: parse, call, print."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microplane.cli import interrupts, options
from microplane.cli.options import Quiet, Set, assigned
from microplane.errors import ConfigError
from microplane.files import json_line

if TYPE_CHECKING:
    from microplane.comparison.compare import Forecast

Methods = Annotated[
    str | None,
    typer.Option("--methods", "-m", metavar="A,B,...", help="Methods by name, or all; list: microplane methods"),
]
Time = Annotated[str | None, typer.Option("--budget", metavar="TIME", help="For all of it, as in 2h or 90min.")]
Tokens = Annotated[str | None, typer.Option("--tokens", metavar="N", help="Instead: tokens of all trials together.")]
Steps = Annotated[str | None, typer.Option("--steps", metavar="N", help="Or optimizer steps of all trials together.")]
Seeds = Annotated[int, typer.Option("--seeds", metavar="N", help="Final runs of each method at its best rate.")]
MetricName = Annotated[
    str | None, typer.Option("--metric", metavar="NAME", help="That they are compared by; the task's own otherwise.")
]
General = Annotated[
    str | None,
    typer.Option("--general", metavar="FILE", help="Text on which forgetting is measured; 50 English texts otherwise."),
]
LearningCurve = Annotated[
    bool, typer.Option("--learning-curve", help="Also from a quarter and half of the rows: would more rows help?")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where it is kept; a new folder.")]
Resume = Annotated[Path | None, typer.Option("--resume", metavar="FOLDER", help="Go on with this comparison.")]
Parallel = Annotated[
    int | None,
    typer.Option(
        "--parallel", metavar="N", help="Trials at once, each in a process with its part of the cores; or one."
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Trials on a Ray cluster: HOST:PORT, auto, or local (a new one here)."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only list the trials and forecast time and memory from a few steps of each.")
]


def compare(
    model: options.Model = None,
    data: options.Data = None,
    methods: Methods = None,
    budget: Time = None,
    tokens: Tokens = None,
    steps: Steps = None,
    seeds: Seeds = 3,
    metric: MetricName = None,
    general: General = None,
    learning_curve: LearningCurve = False,
    set: Set = None,
    out: Out = None,
    resume: Resume = None,
    parallel: Parallel = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print comparison.json, or what --dry-run tells; progress to standard error.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Which method is best on DATA? Each gets its own best learning rate, by an equal share of the budget, then several
    seeds; rows kept for the test decide, and no winner is named out of noise.

    Without a budget a final run is as long as one of train (--set train.epochs). Ctrl-C keeps all; --resume goes on."""
    from microplane.cli.terminal import Terminal, make_console
    from microplane.comparison import compare as comparison

    terminal = Terminal(make_console(stderr=json_))
    given: dict[str, Any] = {"methods": methods, "budget": budget, "tokens": tokens, "steps": steps, "metric": metric}
    given |= {"general": general, "learning_curve": learning_curve}
    given |= {"set": assigned({}, set) if set else None, "watch": None if quiet else terminal}
    with interrupts.told_with_notes(terminal.close):
        if dry_run:
            if ray:
                raise ConfigError("--dry-run makes a few steps of each method here; give it without --ray")
            if resume is not None:
                raise ConfigError("--dry-run is of a comparison that would begin; give it without --resume")
            forecast = comparison.forecast(model, data, seeds=seeds, **given)
            typer.echo(json_line(forecast.to_dict())) if json_ else _tell_forecast(forecast)
            return
        done = comparison.compare(model, data, seeds=seeds, out=out, resume=resume, parallel=parallel, ray=ray, **given)
    if json_:
        typer.echo(json_line(done.result))
        return
    from microplane.comparison.output import terminal as table

    typer.echo("\n".join([*done.result["answer"]["sentences"], ""]))
    typer.echo("\n".join(table(done.result)))
    if curve := done.result["learning_curve"]:
        typer.echo(f"\n{curve['sentence']}")
    for failed in done.result["failed"]:
        typer.echo(f"{failed['method']} failed: {failed['reason']}")
    for note in done.result["notes"]:
        typer.echo(f"note:     {note}")
    typer.echo(f"\npage:     {done.folder / 'comparison.html'}")


def _tell_forecast(found: Forecast) -> None:
    """The trials, and what they take."""
    from microplane.comparison.forecast import shares
    from microplane.comparison.search import GRID
    from microplane.report.words import duration, size

    shorts: Counter[str] = Counter()
    for trial in found.trials:
        shorts[trial.method] += trial.stage == "short"
        known = trial.stage == "probe" or (trial.stage == "short" and shorts[trial.method] <= len(GRID))
        later = "" if known else ", or what the search finds"
        name = "the advised" if trial.stage == "part" else trial.method
        stage = f"{trial.percent}%" if trial.stage == "part" else trial.stage
        typer.echo(f"{name:12} {stage:6} {trial.steps:>6,} steps  seed {trial.seed}  lr {trial.lr:g}{later}")
    typer.echo(f"\n{shares(found.plan)}")
    for name, seconds in found.seconds.items():
        memory = size(found.memory[name]) if name in found.memory else "unknown"
        typer.echo(f"{name:12} {duration(max(seconds, 0.01)):>14}  {memory} of memory in a few steps")
    for name, reason in found.failed.items():
        typer.echo(f"{name:12} cannot be trained here: {reason}")
    typer.echo(f"{'all':12} {duration(max(sum(found.seconds.values()), 0.01)):>14}, one trial after the other")
