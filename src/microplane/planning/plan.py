"""What each method would take on a model, before anything runs: memory by part, disk and time, and whether it fits.

The figures are those of the forecast (microplane/forecast) that a run makes of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import psutil
import torch

from microplane.comparison.plan import chosen_methods
from microplane.config.build import assemble
from microplane.config.knobs import RunKnobs
from microplane.data.progress import Silent, Watcher
from microplane.errors import ConfigError, MicroplaneError, ModelError, check_type
from microplane.forecast import machine
from microplane.forecast.memory import AtOnce, Shapes, forecast
from microplane.hardware import free_memory
from microplane.methods import Method, make_method
from microplane.methods.base_format import base_format
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.files.checkpoint import Checkpoint
from microplane.models.files.hub import resolve
from microplane.models.files.load import build_on_meta, open_checkpoint, open_config
from microplane.models.heads import ensure_head, meta_copy
from microplane.nn.number_format import NumberFormat
from microplane.nn.quantised import weight_count
from microplane.report.words import size
from microplane.runs.own_forecast import run_at_once
from microplane.runs.prepare import check_config, prepare
from microplane.training.context import run_context

ROW = 256  # tokens of a row, where there are no data to tell


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
    path = resolve(config.model.name, config.model.revision)
    checkpoint = _opened(path)
    plain = build_on_meta(checkpoint)
    row = min(ROW, plain.config.context or ROW)
    assumed = AtOnce.of_rows(row, config.train, config.eval.batch_tokens)
    lengths = _Lengths.of(config, watch) if data else _Lengths(assumed, None)
    wanted = chosen_methods(methods or _usual(plain), None)
    there = memory or free_memory() + psutil.Process().memory_info().rss
    at_once = lengths.at_once
    found = Plan(str(model), weight_count(plain), there, at_once.row, at_once.tokens, lengths.tokens)
    if plain.KIND == "encoder" and plain.task_head is None:  # it learns labels; how many hardly matters
        ensure_head(plain, "classification", ("a", "b"), "auto", seed=0)
    say = watch.progress("trying blocks")
    with run_context(config.train):
        for number, name in enumerate(wanted):
            say(number, len(wanted))
            found.methods.append(_of_method(name, config, checkpoint, plain, found, lengths))
        say(len(wanted), len(wanted))
    return found


def _usual(plain: Model) -> tuple[str, ...]:
    return ("lora", "full", "head-only") if plain.KIND == "encoder" else ("lora", "qlora", "full")


def _opened(path: Path) -> Checkpoint:
    """The files of a model, or its config.json where there is no more."""
    try:
        return open_checkpoint(path)
    except ModelError:
        if path.is_dir() and (path / "config.json").is_file() and not any(path.glob("*.safetensors")):
            return open_config(path)
        raise


@dataclass(frozen=True)
class _Lengths:
    at_once: AtOnce
    tokens: int | None  # of all steps

    @classmethod
    def of(cls, config: RunKnobs, watch: Watcher) -> _Lengths:
        prepared = prepare(config, check_config(config, watch), watch)
        at_once, steps = run_at_once(prepared), prepared.batch_plan.run_steps(prepared.config.train)
        return cls(at_once, round(steps * at_once.step))


def _of_method(
    name: str, config: RunKnobs, checkpoint: Checkpoint, plain: Model, found: Plan, lengths: _Lengths
) -> MethodPlan:
    try:
        method = make_method({"name": name})
        form = base_format(config.model, method, checkpoint.stored)
        with torch.device("meta"):
            attach_method(method, attached := meta_copy(plain))
        shapes = Shapes(checkpoint.config, plain, attached, method, form)
        rates, process = machine.measured(), psutil.Process().memory_info().rss
        cost = forecast(shapes, lengths.at_once, config.train, process, rates, always=True)
    except MicroplaneError as error:
        return MethodPlan(name, refused=str(error).splitlines()[0])
    seconds = cost.seconds_per_1000_tokens
    whole = None if seconds is None or found.tokens is None else seconds * found.tokens / 1000
    return _judged(MethodPlan(name, **asdict(cost), seconds=whole), method, form, found)


def _judged(one: MethodPlan, method: Method, form: NumberFormat, found: Plan) -> MethodPlan:
    """With whether it fits, and what would help."""
    if one.total <= found.memory:
        return replace(one, fits=True)
    lacking = one.total - found.memory
    ways = []
    if one.activations > lacking:
        ways.append("train.recompute=blocks, or a smaller train.micro_tokens")
    if form.quantised is None and method.trains != "weights":
        ways.append(f"model.dtype=nf4, which holds the base in {size(one.base / form.stored.itemsize / 2)}")
    if method.trains == "weights" and one.optimizer > lacking:
        ways.append("train.optimizer=adafactor")
    if method.trains == "weights":
        ways.append("a method that trains fewer weights, such as lora")
    advice = f"{size(lacking)} too much: " + ("; ".join(ways) or "a smaller model")
    return replace(one, fits=False, advice=advice)
