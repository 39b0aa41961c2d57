"""`--method auto` and `method.rank = auto`: decided once, before a run, by trials of it; then in its run.yaml."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from microplane.config.build import to_yaml
from microplane.config.knobs import RunKnobs
from microplane.cpu_memory import give_back_memory
from microplane.data.preparing.advice import fitting
from microplane.data.progress import OnlyProgress, Watcher
from microplane.errors import ConfigError, MicroplaneError, notices_to
from microplane.evaluation.nearness import comparable, nearness
from microplane.files import json_value, object_in, write_aside, write_json
from microplane.hardware import free_memory
from microplane.methods import METHODS, USUAL, USUAL_WITH_LABELS, LoRA, make_method
from microplane.models.contract import Model
from microplane.report.words import size
from microplane.runs import choice as rules
from microplane.runs.choice import Candidate, Choice, Knob
from microplane.runs.fit import attach, fit
from microplane.runs.own_forecast import own_forecast
from microplane.runs.prepare import Prepared, open_base, prepare
from microplane.runs.room import lacking
from microplane.training.context import PeakMemory
from microplane.training.log import Record
from microplane.training.ranks import Ranks
from microplane.training.resume import prune

AUTO = "auto"
FOUND, TRIALS = "choice.json", "trials"  # in the run's folder
IN_4_BITS = "qlora"  # in place of lora, where that finds no room


def left_open(config: RunKnobs) -> Knob | None:
    """Which knob is to be chosen by trials; LoRA's rank grows during the run instead (docs/methods/lora-auto.md)."""
    name = config.method.get("name", LoRA.name)
    if name == AUTO:
        return "method.name"
    fields = METHODS[name].model_fields if name in METHODS else {}
    ranked = "rank" in fields and fields["rank"].annotation is int
    return "method.rank" if config.method.get("rank") == AUTO and ranked and name != LoRA.name else None


def stand_in(config: RunKnobs) -> RunKnobs:
    """The same with a method, or a rank, that may be chosen; as it is where nothing is left open.

    Raises:
        ConfigError: for knobs that none of the candidates has, or that leave nothing to choose.
    """
    knob = left_open(config)
    if knob is None:
        return config
    if knob == "method.name":
        _check_open(config)
        return with_method(config, of_method(LoRA.name, config.method))
    return with_method(config, {name: value for name, value in config.method.items() if name != "rank"})


def _check_open(config: RunKnobs) -> None:
    possible = {*USUAL, *USUAL_WITH_LABELS}
    for name in config.method.keys() - {"name"}:
        if not any(name in METHODS[method].model_fields for method in possible):
            raise ConfigError(
                f"method.{name}: none of {', '.join(sorted(possible))}, of which auto chooses, has this knob"
            )
    if isinstance(config.train.lr, float):
        raise ConfigError(
            f"train.lr = {config.train.lr:g} with method.name = auto: a rate suits one method, and each candidate is "
            "tried at its own. Leave train.lr out, or set it to auto"
        )


def refuse(config: RunKnobs, ranks: Ranks) -> None:
    """Raises: ConfigError, for what cannot be chosen by several processes, or for a run that continues an adapter."""
    knob = left_open(config)
    if knob and ranks.size > 1:
        raise ConfigError(
            f"{knob} = auto with {ranks.size} processes: choose with one of them, and run again with its run.yaml"
        )
    if knob and config.model.adapter:
        raise ConfigError(f"{knob} = auto: the adapter {config.model.adapter} has its method and rank. Leave it out")


def with_method(config: RunKnobs, knobs: Mapping[str, Any]) -> RunKnobs:
    return config.model_copy(update={"method": dict(knobs)})


def of_method(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The section `method` with a candidate's name, and of what was given the knobs that it has."""
    own = METHODS[name].model_fields
    return {"name": name, **{knob: value for knob, value in given.items() if knob in own}}


@dataclass(frozen=True)
class Chosen:
    """A run whose method and rank are known.

    Attributes:
        choice: what decided them, if anything was left open.
        trained: its training is done: the trial that was chosen was the whole run, and lies in the run's folder.
        held_bytes: the most memory that the process held while it trained so.
    """

    config: RunKnobs
    choice: dict[str, Any] | None
    trained: bool = False
    held_bytes: int = 0


def chosen(config: RunKnobs, folder: Path, watch: Watcher) -> Chosen | None:
    """The run with its method and rank; what an earlier sitting found is taken. None where the user stopped it: all is
    kept.

    Raises:
        MicroplaneError: for data or a model that cannot be used, or if no candidate can be trained.
    """
    knob, known = left_open(config), object_in(folder / FOUND)
    if knob is None:
        return Chosen(config, known or None)
    write_aside(folder / "run.yaml", to_yaml(config).encode())  # from here on it can be gone on with
    search = _Search(config, folder, watch, knob)
    if not search.choice.chosen and not search.run():
        return None
    choice = search.choice
    for line in choice.lines():
        watch.say(f"auto      {line}")
    if choice.whole:
        _move(_place(folder, choice.taken), folder)
    shutil.rmtree(folder / TRIALS, ignore_errors=True)
    give_back_memory()
    held = choice.taken.held_bytes if choice.whole else 0
    return Chosen(with_method(config, choice.taken.knobs), json_value(choice.to_dict()), choice.whole, held)


def _place(folder: Path, one: Candidate) -> Path:
    """Of a trial, in the run's folder."""
    return folder / TRIALS / one.name.replace(" ", "-")


def _move(trial: Path, folder: Path) -> None:
    """What a trial left becomes the run's; an earlier sitting may have moved a part of it."""
    for path in sorted(trial.glob("*")):
        path.replace(folder / path.name)


class _Search:
    """The trials of a run, each a part of its training in a folder of its own."""

    def __init__(self, config: RunKnobs, folder: Path, watch: Watcher, knob: Knob):
        self.config, self.folder, self.watch, self.quiet = config, folder, watch, OnlyProgress(watch)
        self.first = self._prepared(stand_in(config))
        self.summary = self.first.splits.summary
        self.choice = Choice(knob, self.first.batch_plan.run_steps(config.train))
        with suppress(KeyError, TypeError):
            found = Choice.read(object_in(folder / FOUND))
            if (found.knob, found.run_steps) == (knob, self.choice.run_steps):
                self.choice = found

    def run(self) -> bool:
        """Decide; false if the user stopped it."""
        choice = self.choice
        if not choice.candidates:
            choice.candidates = self._methods() if choice.knob == "method.name" else self._ranks()
            choice.share = self._share(len(choice.possible))
            self._keep()
        self._check_possible()
        if not self._try_all():
            return False
        self._check_possible()
        self._begin_with()
        (rules.decide_method if choice.knob == "method.name" else rules.decide_rank)(choice)
        self._keep()
        return True

    def _check_possible(self) -> None:
        if not self.choice.possible:
            raise ConfigError("; ".join(f"{one.name}: {one.reason}" for one in self.choice.candidates))

    def _share(self, many: int) -> float:
        if many < 2:
            return 0.0
        if self.choice.knob == "method.rank":
            return rules.trial_share(self.choice.run_steps, many)
        return rules.method_share(self.choice.run_steps, many, searched=self.config.train.lr == AUTO)

    def _methods(self) -> list[Candidate]:
        names = USUAL_WITH_LABELS if self.summary.task else USUAL
        found = [self._candidate(name, of_method(name, self.config.method)) for name in names]
        if found[0].reason is not None:
            found.append(self._candidate(IN_4_BITS, of_method(IN_4_BITS, self.config.method)))
        return found

    def _ranks(self) -> list[Candidate]:
        given = {name: value for name, value in self.config.method.items() if name != "rank"}
        kind = METHODS[str(given["name"])]
        ranks = rules.ladder(kind.model_fields["rank"].default, self.choice.run_steps)
        return [self._candidate(f"rank {rank}", kind.at_rank(rank) | given) for rank in ranks]

    def _candidate(self, name: str, knobs: dict[str, Any]) -> Candidate:
        """With its forecast, and why it cannot be trained here, if so."""
        found = Candidate(name, knobs)
        try:
            prepared = self._prepared(with_method(self.config, knobs))
            found.reason = next(iter(lacking(prepared)), None)
            found.memory_bytes = own_forecast(prepared).peak_memory_bytes
        except MicroplaneError as error:
            found.reason = str(error)
        room = free_memory() + psutil.Process().memory_info().rss
        if found.reason is None and found.memory_bytes is not None and found.memory_bytes > room:
            found.reason = f"{size(room)} of memory are there for it"
        return found

    def _prepared(self, config: RunKnobs) -> Prepared:
        """Without what the run itself does: its text of what is forgotten, and the search of its rate."""
        evaluation, train = config.eval.model_copy(update={"general": None}), config.train
        if train.lr == AUTO:
            train = train.model_copy(update={"lr": None})
        plain = config.model_copy(update={"eval": evaluation, "train": train})
        with notices_to(self.quiet.say):  # the run itself hears them
            return prepare(plain, make_method(config.method), self.quiet)

    def _try_all(self) -> bool:
        """Each for the same part of its run; false if the user stopped one."""
        choice = self.choice
        if not choice.share:
            return True
        names = ", ".join(one.name for one in choice.possible)
        steps = f"{choice.run_steps:,} steps"
        part = f"whole runs ({steps})" if choice.whole else f"{choice.share:.0%} of the run's {steps} each"
        self.watch.say(f"auto      trials of {names}: {part}{', the best is kept' if choice.whole else ''}")
        for one in choice.possible:
            if one.loss is None and not self._try(one):
                return False
            if choice.knob == "method.rank" and rules.raised_enough(choice.tried):
                break
        return True

    def _try(self, one: Candidate) -> bool:
        """False if the user stopped it."""
        place, begun = _place(self.folder, one), time.monotonic()
        place.mkdir(parents=True, exist_ok=True)
        try:
            whole = self._train(one, place)
        except MicroplaneError as error:
            one.reason, whole = str(error), True
        one.seconds += time.monotonic() - begun
        self.choice.steps = sum(tried.steps for tried in self.choice.candidates)
        self.choice.seconds = sum(tried.seconds for tried in self.choice.candidates)
        self._keep()
        if whole:
            self._drop(one, place)
        give_back_memory()
        return whole

    def _drop(self, one: Candidate, place: Path) -> None:
        """All trials but the one that may become the run."""
        best = rules.best_of(self.choice.tried) if self.choice.whole and self.choice.tried else None
        if best is one:
            prune(place / "resume")
        for other in self.choice.candidates:
            if other is not best:
                shutil.rmtree(_place(self.folder, other), ignore_errors=True)

    def _train(self, one: Candidate, place: Path) -> bool:
        """A part of the run with this candidate; false if the user stopped it."""
        memory = PeakMemory()
        prepared = self._prepared(with_method(self.config, one.knobs))
        base, _ = open_base(prepared)
        model, shown = base.model, self.watch.progress(f"trial of {one.name}")
        if not self.summary.task:
            self._look(prepared, model)
        attach(prepared, model, place, True, lambda line: None)

        def record(line: Record) -> None:
            if "steps" in line:
                shown(line["step"], line["steps"])

        told = self.quiet, record, lambda size: None
        outcome = fit(prepared, model, place, *told, resume=True, share=self.choice.share).outcome
        if outcome.interrupted:
            return False
        passed = outcome.totals.tokens >= int(prepared.splits.train.lengths.sum())
        if self.summary.task and passed and prepared.method.frozen_below(model) == model.config.num_layers:
            self._look(prepared, model)
        one.steps, one.tokens = outcome.totals.step, outcome.totals.tokens
        one.loss, one.check, one.held_bytes = outcome.validation_loss, outcome.best, memory.bytes()
        return True

    def _look(self, prepared: Prepared, model: Model) -> None:
        """How near the task is: of answers to the untouched model, of labels to what a head makes of its features, once
        it has read all rows."""
        rows = prepared.splits.validation
        if self.choice.near is None and comparable(self.summary.template, self.summary.task, rows):
            found = nearness(prepared.objective, model, rows, prepared.config.eval.batch_tokens)
            self.choice.near = asdict(found) | {"share": found.share}

    def _begin_with(self) -> None:
        """What the rule says, by now that all is known."""
        choice = self.choice
        if choice.knob == "method.rank":
            own = METHODS[str(self.config.method["name"])].model_fields["rank"].default
            choice.start, choice.rule = f"rank {own}", "the method's own"
            return
        near = choice.near["share"] if choice.near else None
        choice.start, why = ("full", "the weights are new") if self._is_new else fitting(self.summary, near)
        known = (
            ""
            if near is None
            else f", {abs(near):.0%} {'below' if near >= 0 else 'above'} the loss with shuffled answers"
        )
        choice.rule = f"{self.summary.rows['train']:,} rows{known}: {why}"

    @property
    def _is_new(self) -> bool:
        return self.config.model.init == "random"

    def _keep(self) -> None:
        write_json(self.folder / FOUND, json_value(self.choice.to_dict()))
