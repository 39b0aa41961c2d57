"""What each method would take on a model, before anything runs: memory by part, disk and time, and whether it fits.

The figures are those of the forecast (microplane/forecast) that a run makes of itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from microplane.comparison.plan import check_method_knobs, chosen_methods
from microplane.config.build import assemble
from microplane.config.knobs import ModelKnobs, RunKnobs
from microplane.data.progress import OnlyProgress, Silent, Watcher
from microplane.errors import ConfigError, MicroplaneError, ModelError, check_type, first_line, notices_to
from microplane.forecast import machine
from microplane.forecast.at_once import AtOnce
from microplane.forecast.memory import Forecast, Process, Shapes, exact_bytes, forecast
from microplane.hardware import free_memory
from microplane.methods import METHODS, LoRA, make_method
from microplane.methods.base_format import base_format
from microplane.methods.method import attach_method
from microplane.models.configs.head import TASKS
from microplane.models.contract import Model
from microplane.models.files.checkpoint import Checkpoint
from microplane.models.files.hub import resolve
from microplane.models.files.load import build_on_meta, open_checkpoint, open_config
from microplane.models.heads import ensure_head, meta_copy
from microplane.nn.quantised import weight_count
from microplane.planning.fitting import OTHERS, Changes, advice, knobs, possible
from microplane.runs.check_knobs import check_knobs, check_knobs_for_model
from microplane.runs.inline_data import in_a_file
from microplane.runs.method_search import of_method, stand_in, with_method
from microplane.runs.own_forecast import run_at_once
from microplane.runs.prepare import Prepared, check_config, prepare
from microplane.training.context import run_context

ROW = 256  # tokens of a row, where there are no data to tell
OWN_FORMAT = {"model.dtype": "auto"}  # for a method that has one


@dataclass(frozen=True)
class MethodPlan:
    """Of one method; sizes in bytes.

    Attributes:
        trainable: weights that train.
        process: Python, torch and the compiled operations.
        activations: what is held of the tokens that are computed at once, and the head's part.
        disk: of the run's folder: the adapter and the checkpoints beside each other.
        seconds_per_1000_tokens: of a step, without what is computed only once.
        seconds: of all steps, where there are data.
        fits: whether `total` is within the memory that was asked for.
        advice: what would make it fit.
        refused: why the method cannot be trained on this model.
    """

    method: str
    trainable: int = 0
    process: int = 0
    base: int = 0
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    disk: int = 0
    seconds_per_1000_tokens: float | None = None
    seconds: float | None = None
    fits: bool | None = None
    advice: str = ""
    refused: str = ""

    @property
    def total(self) -> int:
        return self.process + self.base + self.adapter + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Plan:
    """All methods that were asked for, on one model."""

    model: str
    parameters: int
    memory: int  # that is there
    row: int  # tokens of a row that it is made for
    at_once: int  # tokens that are computed at once
    tokens: int | None  # of the whole training, where there are data
    methods: list[MethodPlan] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        rows = [asdict(one) | {"total": one.total} for one in self.methods]
        return asdict(self) | {"methods": rows}


def plan(
    model: str | Path,
    data: str | Path | None = None,
    *,
    methods: str | Sequence[str] | None = None,
    memory: int | None = None,
    set: dict[str, Any] | None = None,
    watch: Watcher | None = None,
) -> Plan:
    """Forecast what methods take on a model. No weight is read: a config.json is enough.

    Args:
        model: as in `microplane.train`; a folder may hold its config.json alone.
        data: rows, by which lengths, steps and time are known; without, rows of 256 tokens are assumed.
        methods: names, or "all"; lora, qlora, full and head-only (of encoders) otherwise.
        memory: bytes that there are; what is free on this machine otherwise.
        set: knobs by dotted name, as `{"train.recompute": "blocks"}`.

    Raises:
        ConfigError, ModelError, DataError: for what cannot be planned, saying why.

    Examples:
        >>> [(one.method, one.total) for one in microplane.plan("smollm2", methods="lora,full").methods]
        [('lora', 2070000000), ('full', 3900000000)]
    """
    check_type(model, "model", (str, Path), "a name or a path")
    check_type(data, "data", (str, Path, NoneType), "the path of a file or a folder")
    check_type(set, "set", (Mapping, NoneType), 'a mapping of knobs, as {"train.lr": 5e-4}')
    check_type(memory, "memory", (int, NoneType), "a number of bytes")
    if memory is not None and memory <= 0:
        raise ConfigError(f"memory must be a number of bytes above 0, and is {memory}")
    watch = watch or Silent()
    given = {"model.name": str(model), **({"data.train": str(data)} if data else {}), **(set or {})}
    config = assemble(given=given)
    if config.method.get("name", LoRA.name) != LoRA.name:
        raise ConfigError("method.name cannot be set for a plan: use --methods")
    with in_a_file(config) as there, run_context(config.train), notices_to(watch.say):
        return _planned(there, methods, memory, watch)


def _planned(config: RunKnobs, methods: str | Sequence[str] | None, memory: int | None, watch: Watcher) -> Plan:
    _shapes.cache_clear()  # files may be others than they were
    plain = build_on_meta(_opened(resolve(config.model.name, config.model.revision)))
    wanted = chosen_methods(methods or _usual(plain), None)
    check_method_knobs([f"method.{name}" for name in config.method if name != "name"], wanted)
    usual = _usual_run(config, wanted, watch)
    process = Process.now()
    room = memory or free_memory() + process.size
    asked = _Asked(config, process, room, OnlyProgress(watch), {usual.config.model_dump_json(): usual})
    at_once = usual.at_once
    found = Plan(config.model.name, weight_count(plain), asked.memory, at_once.row, at_once.tokens, usual.tokens)
    say = watch.progress("trying blocks")
    for number, name in enumerate(wanted):
        say(number, len(wanted))
        found.methods.append(asked.plan(name))
    say(len(wanted), len(wanted))
    return found


def _usual_run(config: RunKnobs, wanted: Sequence[str], watch: Watcher) -> _Run:
    """That tells the rows: of lora, or of the first method that these knobs suit.

    Raises: MicroplaneError, if there is none.
    """
    refused: ConfigError | None = None
    for name in (LoRA.name, *wanted):
        try:
            return _Run.of(_with(config, name), watch)
        except ConfigError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _opened(path: Path) -> Checkpoint:
    """The files of a model, or its config.json where there is no more."""
    try:
        return open_checkpoint(path)
    except ModelError:
        if path.is_dir() and (path / "config.json").is_file() and not any(path.glob("*.safetensors")):
            return open_config(path)
        raise


def _usual(plain: Model) -> tuple[str, ...]:
    return ("lora", "full", "head-only") if plain.KIND == "encoder" else ("lora", "qlora", "full")


def _with(config: RunKnobs, name: str) -> RunKnobs:
    """The configuration of a run with this method."""
    return stand_in(with_method(config, of_method(name, config.method)))


def _changed(config: RunKnobs, changes: Changes) -> RunKnobs:
    for knob, value in changes.items():
        section, _, leaf = knob.partition(".")
        part = getattr(config, section).model_copy(update={leaf: value})
        config = config.model_copy(update={section: part})
    return config


@dataclass(frozen=True)
class _Run:
    """What a run would compute.

    Attributes:
        config: as it is asked for.
        shapes: of its model, with its method.
        prepared: with its rows, where there are data.
    """

    config: RunKnobs
    shapes: Shapes
    at_once: AtOnce
    prepared: Prepared | None = None

    @classmethod
    def of(cls, config: RunKnobs, watch: Watcher) -> _Run:
        """Raises: MicroplaneError, if it cannot be made."""
        found = cls._with_rows(config, watch) if config.data.train else cls._without_rows(config)
        found._check()
        return found

    @classmethod
    def _with_rows(cls, config: RunKnobs, watch: Watcher) -> _Run:
        prepared = prepare(config, check_config(config, watch), watch, opening=_opened)
        return cls(config, prepared.shapes, run_at_once(prepared), prepared)

    @classmethod
    def _without_rows(cls, config: RunKnobs) -> _Run:
        """Rows are `ROW` tokens long, and an encoder learns labels; how many hardly matters."""
        shapes = _shapes(config.model, json.dumps(config.method, sort_keys=True), config.data.task)
        row = max(1, min(ROW, (shapes.plain.config.context or ROW) - shapes.method.num_virtual_tokens))
        return cls(config, shapes, AtOnce.of_rows(row, config.train, config.eval.batch_tokens))

    def changed(self, changes: Changes) -> _Run:
        """The same with other knobs, on which neither its rows nor what trains depend: nothing of these is made again.

        Raises: MicroplaneError, if it cannot be made.
        """
        config, shapes = _changed(self.config, changes), self.shapes
        if "model.dtype" in changes:
            shapes = replace(shapes, form=base_format(config.model, shapes.method))
        if self.prepared is None:
            at_once = AtOnce.of_rows(self.at_once.row, config.train, config.eval.batch_tokens)
        else:
            inferred = self.prepared.config.model_copy(update={"train": config.train})
            at_once = run_at_once(replace(self.prepared, config=inferred))
        found = replace(self, config=config, shapes=shapes, at_once=at_once)
        found._check()
        return found

    def allows(self, changes: Changes) -> bool:
        try:
            self.changed(changes)
        except MicroplaneError:
            return False
        return True

    def _check(self) -> None:
        """Raises: ConfigError, for knobs with which it would be refused."""
        check_knobs(self.config, self.shapes.method)
        check_knobs_for_model(self.config, self.shapes.method, self.shapes.attached)

    @property
    def tokens(self) -> int | None:
        """Of all steps; None where there are no data."""
        if self.prepared is None:
            return None
        return round(self.prepared.batch_plan.run_steps(self.prepared.config.train) * self.at_once.step)


@lru_cache(maxsize=8)
def _shapes(model: ModelKnobs, method_json: str, task: str) -> Shapes:
    """Kept, for changes that are tried share them and the largest models have a thousand layers to make."""
    checkpoint = _opened(resolve(model.name, model.revision))
    plain, method = build_on_meta(checkpoint), make_method(json.loads(method_json))
    form = base_format(model, method, checkpoint.stored)
    if task in TASKS or (plain.KIND == "encoder" and plain.task_head is None):
        ensure_head(plain, task if task in TASKS else "classification", ("a", "b"), model.pooling, seed=0)
    with torch.device("meta"):
        attach_method(method, attached := meta_copy(plain))
    return Shapes(checkpoint.config, plain, attached, method, form)


@dataclass(frozen=True)
class _Asked:
    """What all methods have in common.

    Args:
        process: this one, before anything was tried.
        memory: bytes that there are.
        runs: that were made already, by their configuration.
    """

    config: RunKnobs
    process: Process
    memory: int
    watch: Watcher
    runs: dict[str, _Run]

    def _run(self, config: RunKnobs) -> _Run:
        key = config.model_dump_json()
        if (found := self.runs.get(key)) is None:
            found = _Run.of(config, self.watch)
            if config.method["name"] in OTHERS:  # which are asked for again; of all methods there may be too many
                self.runs[key] = found
        return found

    def plan(self, name: str) -> MethodPlan:
        try:
            run = self._run(_with(self.config, name))
            cost = self._cost(run)
        except MicroplaneError as error:
            return MethodPlan(name, refused=first_line(error))
        rate = cost.seconds_per_1000_tokens
        seconds = None if rate is None or run.tokens is None else rate * run.tokens / 1000
        found = MethodPlan(name, **asdict(cost), seconds=seconds)
        if found.total <= self.memory:
            return replace(found, fits=True)
        return replace(found, fits=False, advice=self._advice(found, run))

    def _cost(self, run: _Run) -> Forecast:
        return forecast(run.shapes, run.at_once, run.config.train, self.process, machine.measured(), always=True)

    def _advice(self, found: MethodPlan, run: _Run) -> str:
        shapes = run.shapes
        changes = [one for one in possible(self.config, shapes.method, shapes.form, run.at_once) if run.allows(one)]
        others = self._others() if shapes.method.trains == "weights" else {}

        def total_with(change: Changes) -> float:
            return self._total(lambda: run.changed(change))

        return advice(found.total, self.memory, changes, total_with, others)

    def _others(self) -> dict[str, float]:
        """Totals of methods that train few weights, by what is to be said of them. One that has a format of its own is
        asked for without another one."""
        dtype, found = self.config.model.dtype, {}
        for name in OTHERS:
            config, told = _with(self.config, name), name
            if METHODS[name].quantize not in (None, dtype) and dtype != "auto":
                config, told = _changed(config, OWN_FORMAT), f"{name} with {knobs(OWN_FORMAT)}"
            found[told] = self._total(partial(self._run, config))
        return found

    def _total(self, make: Callable[[], _Run]) -> float:
        """Of a run; without trying blocks where weights alone take more than there is, and infinite where it cannot be
        made."""
        try:
            run = make()
            least = self.process.size + exact_bytes(run.shapes, run.config.train)
            return least if least > self.memory else self._cost(run).peak_memory_bytes
        except MicroplaneError:
            return math.inf
