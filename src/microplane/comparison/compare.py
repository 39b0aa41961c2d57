"""A comparison from the names to the answer: the plan, the search of each method's rate, the seeds, the table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from microplane.comparison.budget import Budget
from microplane.comparison.course import Course
from microplane.comparison.folder import PLAN, held_folder, new_folder
from microplane.comparison.forecast import expected, shares, within_time
from microplane.comparison.machines import Machines, this_machine
from microplane.comparison.plan import Plan, Trial, chosen_methods, make_plan
from microplane.comparison.ray_cluster import Cluster, cluster
from microplane.comparison.result import result_of
from microplane.comparison.rows import source_of
from microplane.comparison.table import judged, measured
from microplane.comparison.trials import Trials
from microplane.comparison.write import write_outputs
from microplane.config.build import assemble
from microplane.config.knobs import DataKnobs
from microplane.data.progress import Silent, Watcher
from microplane.errors import ConfigError, DataError, check_type, notices_to
from microplane.runs.inline_data import STDIN, InlineData, configured


@dataclass(frozen=True)
class Comparison:
    """A comparison that has ended.

    Attributes:
        folder: holds comparison.json, comparison.md, comparison.html, ledger.json, trials/ (a run's folder each), and
            what it goes on from.
        result: what comparison.json holds: `answer` (sentences, leaders, advised), `methods` and `baselines` (a row for
            each, the best first), `search`, `ledger`, `plan`, `environment`.

    Examples:
        >>> found = microplane.compare("minilm", "reviews.csv", methods=["lora", "full"], steps=2000)
        >>> print(found.answer)
        These two cannot be told apart on 126 rows with 3 seeds (a difference below 7.0 points is invisible here): ...
    """

    folder: Path
    result: dict[str, Any]

    @property
    def answer(self) -> str:
        """In words, the first line first."""
        return "\n".join(self.result["answer"]["sentences"])

    @property
    def methods(self) -> list[dict[str, Any]]:
        """A row for each method, the best first."""
        rows: list[dict[str, Any]] = self.result["methods"]
        return rows


@dataclass(frozen=True)
class Forecast:
    """What a comparison would do and take, by what a few steps of each method took: its trials, seconds and bytes."""

    plan: Plan
    trials: list[Trial]
    seconds: dict[str, float]  # by method
    memory: dict[str, int]
    failed: dict[str, str]  # methods that cannot be trained here, and why

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"trials": [asdict(one) | {"name": one.name} for one in self.trials]}


def compare(
    model: str | Path | None = None,
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    *,
    methods: str | Sequence[str] | None = None,
    budget: str | float | None = None,
    tokens: str | int | None = None,
    steps: str | int | None = None,
    seeds: int = 3,
    metric: str | None = None,
    general: str | Path | None = None,
    learning_curve: bool = False,
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    parallel: int | None = None,
    ray: str | None = None,
    watch: Watcher | None = None,
) -> Comparison:
    """Compare methods on your data: each at its own best learning rate, with several seeds, on rows kept for the test.

    Args:
        model: as `train` takes it.
        data: as `train` takes it; test rows are cut off where the data have none.
        methods: names, or "all".
        budget: time for all of it, as "2h" or seconds. Or `tokens`, or `steps` of the optimizer. Without any, each
            final run makes the passes that `train` makes (`train.epochs`), and no budget makes it longer.
        seeds: final runs of each method.
        metric: that methods are compared by; the task's own otherwise.
        general: a file of text on which it is measured what models that write forget, as the knob `eval.general`;
            the package's own text otherwise.
        learning_curve: whether the method that is advised is trained on a quarter and half of the rows too, to tell
            what twice as many would bring.
        set: more knobs for all trials, by dotted name; knobs of methods go to those that have them.
        out: the folder, which must be new; `runs/compare-<model>-<data>` otherwise.
        resume: the folder of a comparison that goes on, instead of all the above.
        parallel: trials at once, each in a process of its own with its part of the processor; their times are then
            those of a shared machine. One, or with `ray` one for each of its machines, unless it is said.
        ray: a Ray cluster to run the trials on: its HOST:PORT, "auto" for the one that runs on this machine, or "local"
            for one that begins and ends with this call.
        watch: is told what happens.

    Raises:
        MicroplaneError: for anything that is wrong; trials that are done stay done.
    """
    watch = watch or Silent()
    asked = (model, data, methods, budget, tokens, steps, metric, general, learning_curve or None, set, out)
    with notices_to(watch.say):
        if resume is not None:
            if any(one is not None for one in asked[2:]):
                raise ConfigError(f"--resume {resume} takes everything from that comparison; give it alone")
            return _go_on(Path(resume), model, data, parallel, ray, watch)
        how = Budget.of(budget, tokens, steps), seeds, metric, general, learning_curve
        if methods is not None:
            chosen_methods(methods, None)  # refused before there is a folder
        folder = new_folder(out, model, data)
        with _machines(parallel, ray, set or {}) as machines, held_folder(folder, begins=True):
            plan = _planned(folder, model, data, set, methods, *how, watch)
            plan.write(folder)
            return _carry_out(folder, plan, machines, watch)


def forecast(
    model: str | Path | None = None,
    data: str | Path | None = None,
    *,
    methods: str | Sequence[str] | None = None,
    budget: str | float | None = None,
    tokens: str | int | None = None,
    steps: str | int | None = None,
    seeds: int = 3,
    metric: str | None = None,
    general: str | Path | None = None,
    learning_curve: bool = False,
    set: Mapping[str, Any] | None = None,
    watch: Watcher | None = None,
) -> Forecast:
    """What `compare` would do with the same arguments. A few steps of each method are made, and forgotten."""
    watch = watch or Silent()
    with tempfile.TemporaryDirectory() as name, notices_to(watch.say):
        folder = Path(name)
        limit = Budget.of(budget, tokens, steps)
        how = limit, seeds, metric, general, learning_curve
        plan = _planned(folder, model, data, set, methods, *how, watch)
        course = Course(Trials(folder, plan, watch), plan, watch)
        course.probe()
        course.check_going()
        probes = [] if plan.steps else [one.trial for one in course.pace.done]  # they are of the comparison itself
        if plan.steps is None:
            plan = within_time(plan, course.pace, course.seconds)
        every = [*probes, *expected(plan, course.going[0])]
        trials = [trial for trial in every if trial.method in course.going]
        by_method = {name: [trial for trial in trials if trial.method == name] for name in plan.methods}
        peaks = {one.trial.method: int(one.result["train"]["peak_memory_bytes"]) for one in course.pace.done}
        seconds = {name: course.pace.total(own) or 0.0 for name, own in by_method.items() if own}
        return Forecast(plan, trials, seconds, peaks, course.failed)


def _machines(parallel: int | None, ray: str | None, set: Mapping[str, Any]) -> AbstractContextManager[Machines]:
    """Where the trials run: here, or on a Ray cluster."""
    if parallel is not None:
        check_type(parallel, "parallel", int, "a number of trials at once")
        if parallel < 1:
            raise ConfigError(f"--parallel {parallel}: at least one trial has to run")
    if ray is None:
        return this_machine(parallel or 1)
    check_type(ray, "ray", str, "HOST:PORT of a Ray cluster, auto, or local")
    return cluster(ray, parallel, str(set.get("model.device", "auto")))


def _planned(
    folder: Path,
    model: Any,
    data: Any,
    set: Mapping[str, Any] | None,
    methods: str | Sequence[str] | None,
    budget: Budget | None,
    seeds: int,
    metric: str | None,
    general: str | Path | None,
    learning_curve: bool,
    watch: Watcher,
) -> Plan:
    """The plan of what was asked for; rows that lie in no file are in the folder then."""
    if model is None or data is None:
        raise ConfigError("a comparison needs a model and rows, as in: microplane compare MODEL DATA")
    given = {str(name): fspath(value) if isinstance(value, PathLike) else value for name, value in (set or {}).items()}
    common = {name: value for name, value in given.items() if not name.startswith("method.")}
    config, inline = configured(model, data, {}, common)
    if config.data.train == STDIN:
        inline = InlineData.of_stdin()
    if inline is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = inline.write(folder)
        config = assemble(given={"model.name": config.model.name, "data.train": str(path)} | common)
    text = None if general is None else str(general)
    return make_plan(config, methods, budget, seeds, metric, text, learning_curve, given, folder, watch)


def _go_on(folder: Path, model: Any, data: Any, parallel: int | None, ray: str | None, watch: Watcher) -> Comparison:
    plan = Plan.read(folder)
    for what, value, known in (("model", model, plan.model), ("data", data, plan.data)):
        if value is not None and str(value) != known:
            raise ConfigError(
                f"--resume {folder} goes on with the {what} {known}, not {value}; give the folder alone, or begin anew"
            )
    _check_rows(folder, plan)
    with _machines(parallel, ray, plan.set) as machines, held_folder(folder):
        return _carry_out(folder, plan, machines, watch)


def _check_rows(folder: Path, plan: Plan) -> None:
    """Raises: DataError, if the rows that were given are others by now, or their copy is gone."""
    for path in (plan.rows.train, plan.rows.validation, plan.rows.test, *plan.rows.parts.values()):
        if not Path(path).is_file():
            raise DataError(f"{path} is gone, so {folder} cannot go on; a comparison stays where it was begun")
    knobs = {name.removeprefix("data."): value for name, value in plan.set.items() if name.startswith("data.")}
    given = DataKnobs(**knobs | {"train": plan.data})
    if Path(plan.data).expanduser().exists() and source_of(given) != plan.rows.source:
        raise DataError(
            f"the rows of {plan.data} have changed since {folder} was begun: trials with others cannot be compared. "
            "Begin a new comparison, or put the old rows back"
        )


def _carry_out(folder: Path, plan: Plan, machines: Machines, watch: Watcher) -> Comparison:
    if isinstance(machines, Cluster):
        machines.check(_to_be_seen(folder, plan))
    trials = Trials(folder, plan, watch, machines)
    course = Course(trials, plan, watch)
    if plan.by_clock:
        course.probe()  # of one that goes on they are found, and are in its ledger
    if plan.steps is None:
        plan = within_time(plan, course.pace, course.seconds)
        plan.write(folder)
        trials.plan = course.plan = course.pace.plan = plan
    watch.say(
        f"{plan.counts['train']:,} training, {plan.counts['validation']:,} validation and {plan.counts['test']:,} test "
        f"rows ({plan.rows.told})"
    )
    watch.say(shares(plan))
    course.search()
    course.finish()
    finals = {
        name: [run for run in runs if run.ok] for name, runs in course.finals.items() if name not in course.failed
    }
    course.check_going()
    found = measured(plan, finals)
    judgement = judged(found, finals)
    if plan.learning_curve:
        course.learn(judgement.advised)
    result = result_of(folder, plan, course, finals, found, judgement)
    write_outputs(folder, result)
    return Comparison(folder, result)


def _to_be_seen(folder: Path, plan: Plan) -> list[Path]:
    """By each machine that runs trials: the plan, the rows, and a model or a text that lies in files of one's own."""
    named = [plan.rows.train, plan.model, *([plan.general] if plan.general else [])]
    return [(folder / PLAN).absolute(), *(Path(one).absolute() for one in named if Path(one).exists())]
