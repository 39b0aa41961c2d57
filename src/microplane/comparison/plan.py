"""What a comparison is asked for, and what is decided before its first trial: `plan.json` and `trials.yaml`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from microplane.comparison.budget import Budget
from microplane.comparison.folder import PLAN, PLANNING, TRIALS, is_begun
from microplane.comparison.rows import ComparisonRows, copy_rows
from microplane.comparison.scoring import LEAST_ROWS, choose
from microplane.comparison.search import PARTS, Lengths, longest
from microplane.config.build import to_yaml
from microplane.config.knobs import DataKnobs, RunKnobs
from microplane.data.batch_plan import BatchPlan
from microplane.data.preparing.load_splits import load_splits
from microplane.data.progress import Watcher, counting
from microplane.data.reading.formats import TEXT
from microplane.data.store import Dataset
from microplane.errors import ConfigError, DataError, check_type, nearest
from microplane.files import read_object, write_aside, write_json
from microplane.methods import METHODS, USUAL, USUAL_WITH_LABELS, Method, make_method
from microplane.runs.general import DEFAULT, open_general
from microplane.runs.prepare import Opened, open_for_data

Stage: TypeAlias = Literal["probe", "short", "half", "final", "part"]

ANSWERING: tuple[Stage, ...] = ("final", "part")  # stages in which the test rows are answered
LEAST_STEPS = 4  # of a final run: a quarter of fewer is no run
PROBE_STEPS = 5
CHOSEN_BY = 200  # test rows by whose answers it is seen which metrics there are
PROBE_ANSWERS = 8
UNMEASURED = "forgetting is measured on text that a model writes, and here a task head answers ({task})"
TEXT_ROWS = 300  # test rows to which answers are generated, unless eval.rows says another number
DECIDED = {  # knobs that the comparison itself sets
    "name": "the comparison's folder is --out",
    "runs": "the comparison's folder is --out",
    "method.name": "use --methods",
    "data.long_rows": "methods are compared row by row, and windows of one text are no rows of their own",
    "train.lr": "each method's rate is searched",
    "train.steps": "use --steps for the whole comparison, or train.epochs for a single run",
    "train.seed": "use --seeds for how many there are",
    "model.adapter": "each trial starts from the untouched model",
    "eval.metrics": "use --metric",
    "eval.general": "use --general",
    "eval.speed": "it is measured for each method",
}


@dataclass(frozen=True)
class Trial:
    """One run."""

    method: str
    stage: Stage
    lr: float
    steps: int
    seed: int = 0
    percent: int = 100  # of the training rows

    @property
    def name(self) -> str:
        """Of its folder."""
        seed = f"-seed{self.seed}" if self.stage in ANSWERING else ""
        part = str(self.percent) if self.stage == "part" else ""
        return f"{self.method}-{self.stage}{part}-lr{self.lr:g}-steps{self.steps}{seed}"

    def __str__(self) -> str:
        seed = f", seed {self.seed}" if self.stage in ANSWERING else ""
        stage = f"{self.percent}% of the rows" if self.stage == "part" else self.stage
        return f"{self.method}, {stage}, lr {self.lr:g}, {self.steps} steps{seed}"


@dataclass(frozen=True)
class Plan:
    """What a comparison is asked for, and what was decided of it.

    Args:
        methods: in their order; differences are to the first, or to lora where it is among them.
        set: further knobs of all trials; those of methods go to the methods that have them.
        defaults: each method's own rate on this model.
        most_steps: of a run of `train` on these rows; no run is longer.
        answer_rows: test rows on which the methods are compared.
        learning_curve: whether the method that is advised is trained on parts of the rows too.
        general: text on which the final runs measure what was forgotten; None where no text is written.
        general_name: the same as it was given.
        steps: of a final run; None until a budget of time could be reckoned.
    """

    model: str
    data: str
    methods: tuple[str, ...]
    seeds: int
    metric: str | None
    set: dict[str, Any]
    budget: Budget | None
    rows: ComparisonRows
    task: str | None
    defaults: dict[str, float]
    most_steps: int
    tokens_per_step: float
    counts: dict[str, int]
    answer_rows: int
    general: str | None
    learning_curve: bool = False
    steps: int | None = None
    general_name: str | None = None

    @property
    def reference(self) -> str:
        return "lora" if "lora" in self.methods else self.methods[0]

    @property
    def by_clock(self) -> bool:
        """Whether the length of its runs is reckoned from probes."""
        return self.budget is not None and self.budget.kind == "seconds"

    @property
    def lengths(self) -> Lengths:
        assert self.steps is not None, "the length is decided before the first trial"
        return Lengths(self.steps, self.rows.shares)

    def all_steps(self, final: int) -> int:
        """Optimizer steps of all trials, with final runs of so many."""
        lengths = Lengths(final, self.rows.shares)
        parts = self.seeds * sum(lengths.part(percent) for percent in PARTS) if self.learning_curve else 0
        return len(self.methods) * lengths.of_method(self.seeds) + parts

    def method_knobs(self, method: str) -> dict[str, Any]:
        """Those of `set` that are this method's."""
        return knobs_of(method, self.set)

    def write(self, folder: Path) -> None:
        write_json(folder / PLAN, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Raises: ConfigError, if no comparison was begun there."""
        if not is_begun(folder):
            stopped = "it was stopped before its plan was made. Begin it again as you did, with the same --out"
            why = stopped if (folder / PLANNING).is_file() else f"it has no {PLAN}"
            raise ConfigError(f"{folder} holds no comparison that could go on: {why}")
        values = read_object(folder / PLAN, ConfigError)
        try:
            values["methods"] = tuple(values["methods"])
            values["budget"] = values["budget"] and Budget(**values["budget"])
            return cls(**{**values, "rows": ComparisonRows(**values["rows"])})
        except (KeyError, TypeError) as problem:
            raise ConfigError(f"{folder / PLAN} is damaged, or of another version: {problem}") from None


def chosen_methods(wanted: str | Sequence[str] | None, task: str | None) -> tuple[str, ...]:
    """Raises: ConfigError, for a method that does not exist, none, or one twice."""
    if wanted is None:
        return USUAL_WITH_LABELS if task else USUAL
    check_type(wanted, "methods", (str, list, tuple), "names of methods, as 'lora,full' or ['lora', 'full']")
    names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    if names == ["all"]:
        return tuple(METHODS)
    for name in names:
        check_type(name, "methods", str, "names of methods")
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise ConfigError(f"there is no method {name!r}.{nearest(name, METHODS)} Methods: {known}, or all")
    if len({*names}) < len(names):
        raise ConfigError(f"--methods {','.join(names)}: one of them stands there twice")
    if not names:
        raise ConfigError("there is no method to compare; name some, as in --methods lora,full")
    return tuple(names)


def knobs_of(method: str, set: Mapping[str, Any]) -> dict[str, Any]:
    """Those knobs that a method has, without the section's name."""
    own = METHODS[method].model_fields
    given = {name.removeprefix("method."): value for name, value in set.items() if name.startswith("method.")}
    return {name: value for name, value in given.items() if name in own}


def check_set(given: Iterable[str], methods: Sequence[str]) -> None:
    """Raises: ConfigError, for knobs that a comparison decides itself, or that none of the methods has."""
    for name in given:
        if name in DECIDED:
            raise ConfigError(f"{name} cannot be set for a comparison: {DECIDED[name]}")
    check_method_knobs(given, methods)


def check_method_knobs(given: Iterable[str], methods: Sequence[str]) -> None:
    """Raises: ConfigError, for knobs of methods that none of these has."""
    for name in given:
        knob = name.removeprefix("method.")
        if name.startswith("method.") and not any(knob in METHODS[method].model_fields for method in methods):
            raise ConfigError(f"{name}: none of the methods {', '.join(methods)} has this knob")


def make_plan(
    config: RunKnobs,
    methods: str | Sequence[str] | None,
    budget: Budget | None,
    seeds: int,
    metric: str | None,
    general: str | None,
    learning_curve: bool,
    set: Mapping[str, Any],
    folder: Path,
    watch: Watcher,
) -> Plan:
    """Read the model's shapes and the rows, copy these, and decide all that can be decided without a trial.

    Raises:
        MicroplaneError: for a model, rows, methods, knobs or a budget that cannot be used.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least one run of each method is needed")
    check_set(set, list(METHODS) if methods is None else chosen_methods(methods, None))
    watch.say(f"opening {config.model.name}, reading {config.data.train}")
    opened = open_for_data(config, _narrowest(methods, set), watch)
    rows = copy_rows(opened, folder / "data", learning_curve)
    common = config_of_trials(opened.config, rows, folder)
    how = opened.tokenizer, opened.possible, counting(watch)
    load_splits(common.data, *how)  # kept in the cache for the trials
    splits = load_splits(common.data.model_copy(update={"test": rows.test}), *how)
    task, test = splits.summary.task, splits.test
    assert test is not None
    names = chosen_methods(methods, task)
    batches = BatchPlan(splits.train.lengths, config.train.batch_size, config.train.batch_tokens, 0)
    most = batches.run_steps(config.train)
    counts = {"train": len(splits.train), "validation": len(splits.validation), "test": len(test)}
    asked = len(test) if task else min(len(test), set.get("eval.rows", TEXT_ROWS))
    plan = Plan(
        model=config.model.name,
        data=config.data.train,
        methods=names,
        seeds=seeds,
        metric=metric,
        set=dict(set),
        budget=budget,
        rows=rows,
        task=task,
        defaults={name: make_method(name).rate(opened.plain) for name in names},
        most_steps=most,
        tokens_per_step=float(splits.train.lengths.sum()) / batches.total_steps(1),
        counts=counts,
        answer_rows=asked,
        general=_general(general, task, opened),
        learning_curve=learning_curve,
        general_name=general,
    )
    _check_metric(plan, opened, test, plain=splits.summary.format_name == TEXT)
    plan = with_steps(plan)
    write_aside(folder / "trials.yaml", to_yaml(common).encode())
    return plan


def _narrowest(methods: str | Sequence[str] | None, set: Mapping[str, Any]) -> Method:
    """The method that leaves the rows the least room, which all have then: the same tokens for everybody."""
    names = ("lora",) if methods is None else chosen_methods(methods, None)
    every = [make_method({"name": name} | knobs_of(name, set)) for name in names]
    return max(every, key=lambda method: method.num_virtual_tokens)


def _general(asked: str | None, task: str | None, opened: Opened) -> str | None:
    """The text that is asked for, or else the default; opened once, so that what is wrong with it is told now.

    Raises:
        ConfigError: for a text where a task head answers.
        DataError: for a file that cannot be read.
    """
    if task:
        if asked is not None:
            raise ConfigError(f"--general {asked}: {UNMEASURED.format(task=task)}. Leave it out")
        return None
    text = DEFAULT if asked in (None, DEFAULT) else str(Path(str(asked)).expanduser().absolute())
    evaluation = opened.config.eval.model_copy(update={"general": text})
    open_general(opened.config.model_copy(update={"eval": evaluation}), opened.plain, opened.tokenizer)
    return text


def config_of_trials(config: RunKnobs, rows: ComparisonRows, folder: Path) -> RunKnobs:
    """What all trials have in common. Paths are absolute: they may be gone on with from elsewhere."""
    name = config.model.name
    here = str(Path(name).expanduser().resolve()) if Path(name).expanduser().exists() else name
    data = {"train": rows.train, "validation": rows.validation, "test": None, "limit": None}
    data |= {name: DataKnobs.model_fields[name].default for name in ("validation_share", "validation_rows")}  # done
    return config.model_copy(
        update={
            "name": None,
            "runs": str((folder / TRIALS).absolute()),
            "method": {"name": "lora"},
            "model": config.model.model_copy(update={"name": here}),
            "data": config.data.model_copy(update=data),
        }
    )


def _check_metric(plan: Plan, opened: Opened, test: Dataset, plain: bool) -> None:
    """Raises: ConfigError, for a metric that these rows do not have, or rows without answers or labels; DataError, for
    too few of them."""
    if 0 < plan.answer_rows < LEAST_ROWS:
        raise DataError(f"methods would be compared on a single row: at least {LEAST_ROWS} test rows are needed")
    if plan.task:
        choose(plan.metric, plan.task, [])
        return
    if plain:
        raise ConfigError(f"{plan.data} holds plain text: methods are compared by answers or labels, which it has not")
    if not plan.answer_rows:
        raise ConfigError("eval.rows = 0 leaves nothing to compare the methods by")
    targets = [test.prompt_and_target(row)[1] for row in range(min(len(test), CHOSEN_BY))]
    choose(plan.metric, None, [opened.tokenizer.for_targets.decode(target) for target in targets])


def with_steps(plan: Plan) -> Plan:
    """With the length of its runs, where that follows from the budget without a clock.

    Raises:
        ConfigError: for a budget too small for one trial of each method.
    """
    if plan.budget is None:
        return replace(plan, steps=max(plan.most_steps, LEAST_STEPS))
    if plan.by_clock:
        return plan
    total = plan.budget.amount / (plan.tokens_per_step if plan.budget.kind == "tokens" else 1)
    steps = longest(total, plan.all_steps, max(plan.most_steps, LEAST_STEPS))
    if steps < LEAST_STEPS:
        least = plan.all_steps(LEAST_STEPS)
        least = math.ceil(least * plan.tokens_per_step) if plan.budget.kind == "tokens" else least
        raise ConfigError(
            f"--{plan.budget.kind} {plan.budget.amount:,.0f} is too little for {len(plan.methods)} methods with their "
            f"search and {plan.seeds} seeds: at least {least:,} {plan.budget.kind} are needed, or fewer methods"
        )
    return replace(plan, steps=steps)
