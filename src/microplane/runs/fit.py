"""Attach the method, choose what it starts from, train, and keep the best weights in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from microplane.adapters.export import finished
from microplane.checkpoints.adapter import hand_in_adapter, load_adapter, save_adapter
from microplane.config.knobs import TrainKnobs
from microplane.data.batch_plan import BatchPlan
from microplane.data.progress import Watcher
from microplane.evaluation.evaluate import LEAST_BATCHES, validation_loss
from microplane.evaluation.nearness import comparable, ignores_inputs
from microplane.evaluation.probe import ROWS, probe_logits, probe_rows, save_probe
from microplane.methods import trainable_parameters
from microplane.methods.adapted_linear import adapted_line
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.heads import head_metadata, head_trains_alone
from microplane.nn.sharded import reshard
from microplane.runs.known_start import validated_once
from microplane.runs.numbered_classes import check_classes
from microplane.runs.prepare import Prepared
from microplane.training import loop
from microplane.training.feature_cache import cache_features
from microplane.training.init_from_data import init_from_data
from microplane.training.log import Record
from microplane.training.loop import Outcome
from microplane.training.monitor import ValidationLoss
from microplane.training.ranks import ALONE, Ranks
from microplane.training.resume import checkpoints

KEPT_PASSES = 30.0
FEW = 2  # rows that two models are compared on in a rehearsal
VALIDATING = "validating"  # as the progress calls it


@dataclass
class Fitted:
    """What training came to; the best weights are in `adapter/`."""

    outcome: Outcome
    trainable_parameters: int
    feature_cache: dict[str, Any] | None


def attach(prepared: Prepared, model: Model, folder: Path, resume: bool, say: Callable[[str], None]) -> None:
    """Put the method on the base, as it starts, or as it was saved in `model.adapter`. A checkpoint holds what the run
    started from already."""
    config, method = prepared.config, prepared.method
    torch.manual_seed(config.train.seed)
    attach_method(method, model)
    if line := adapted_line(model):
        say(line)
    if resume and checkpoints(folder / "resume"):
        return
    if config.model.adapter:
        check_classes(Path(config.model.adapter), model)
        load_adapter(Path(config.model.adapter), model, method)
        say(f"starts from the adapter {config.model.adapter}")
    else:
        init_from_data(
            prepared.weighted_objective,
            model,
            method,
            prepared.splits.train,
            config.train,
            prepared.checkpoint.tensors,
            say,
        )


def fit(
    prepared: Prepared,
    model: Model,
    folder: Path,
    watch: Watcher,
    on_record: Callable[[Record], None],
    on_saved: Callable[[int], None],
    resume: bool = False,
    ranks: Ranks = ALONE,
    share: float = 1.0,
    rehearsal: bool = False,
) -> Fitted:
    """Train `model`, to which the method is attached; with other processes, if there are any.

    Args:
        on_record: sees each line of metrics.jsonl, with the clock's figures.
        on_saved: is told the bytes of the weights file in `adapter/` whenever that is written.
        share: of the run's steps; a part of it is a whole run of its own, with its whole schedule and two validations.
        rehearsal: see `training.loop.fit`; it validates in batches as large as `eval.batch_tokens` allows, compares
            few rows, and does not ask whether inputs are ignored.

    Raises:
        TrainingError, CheckpointError: see `training.loop.fit`.
    """
    train, validation = prepared.splits.train, prepared.splits.validation
    objective, method = prepared.weighted_objective, prepared.method
    plan, knobs = prepared.batch_plan, prepared.config.train
    kept_knobs = if_kept(model, knobs)
    if share < 1:
        knobs, kept_knobs = (_part_of(plan, one, share) for one in (knobs, kept_knobs))
    metadata = prepared.adapter_metadata() | head_metadata(model)
    rows = probe_rows(objective, validation, FEW if rehearsal else ROWS)
    off, sets = knobs.feature_cache == "off", {"training": train, "validation": validation}
    with ranks.first_alone():
        read, kept = cache_features(objective, model, sets, plan.passes(kept_knobs), watch, off)
    used = kept_knobs if kept else knobs
    if prepared.steps_asked is None and share == 1:
        _say_passes(plan, used, watch)
    summary = prepared.splits.summary
    can_ignore = comparable(summary.template, summary.task, validation) and not (rehearsal or head_trains_alone(model))
    groups = 1 if rehearsal else LEAST_BATCHES
    stops = objective.stop_ids(prepared.tokenizer, prepared.config.data.template)
    tokenizer, tokens = finished(model, prepared.tokenizer, stops)

    def save_best(step: int, loss: float) -> None:
        if ranks.is_first:
            on_saved(save_adapter(folder / "adapter", model, method, {**metadata, "step": step}, tokens))
        else:
            hand_in_adapter(model)
        logits = probe_logits(objective, model, rows)
        reshard(model)
        if ranks.is_first:
            save_probe(folder, rows, logits)

    at_once, begins = prepared.config.eval.batch_tokens, [ranks.size == 1 and not rehearsal and not resume]

    def measured(tuned: nn.Module) -> ValidationLoss:
        told = watch.progress(VALIDATING)
        found = validation_loss(objective, tuned, read["validation"], at_once, told, ranks, groups)
        if not can_ignore:
            return found
        return replace(found, ignores_inputs=ignores_inputs(objective, cast(Model, tuned), validation, at_once))

    def validate(tuned: nn.Module) -> ValidationLoss:
        if begins and begins.pop():
            return validated_once(prepared, model, [at_once, can_ignore, kept is not None], lambda: measured(tuned))
        return measured(tuned)

    if method.whole_model and ranks.is_first:
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder / "adapter")
    outcome = loop.fit(
        model,
        method,
        read["training"],
        used,
        folder,
        objective=objective,
        validate=validate,
        save_best=save_best,
        identity=prepared.identity() | {"features kept": kept is not None},
        resume=resume,
        on_record=on_record,
        ranks=ranks,
        rehearsal=rehearsal,
    )
    return Fitted(outcome, trainable_parameters(model), kept)


def if_kept(model: Model, knobs: TrainKnobs) -> TrainKnobs:
    """The knobs where features of frozen blocks are kept: a pass over those of a head alone costs nothing."""
    if knobs.epochs is None and not knobs.steps and head_trains_alone(model):
        return knobs.model_copy(update={"epochs": KEPT_PASSES})
    return knobs


def _say_passes(plan: BatchPlan, knobs: TrainKnobs, watch: Watcher) -> None:
    """How often the rows are read, where nobody said it and it is more than once."""
    if (often := plan.passes(knobs)) > 1:
        why = "few rows are" if knobs.epochs is None else "what is kept of rows is"
        told = f"{often:g} over the {len(plan.lengths):,} rows, {plan.run_steps(knobs):,} steps"
        watch.say(f"passes    {told}: {why} read more than once (train.epochs); the best step's weights are kept")


def _part_of(plan: BatchPlan, knobs: TrainKnobs, share: float) -> TrainKnobs:
    steps = max(1, int(share * plan.run_steps(knobs)))
    return knobs.model_copy(update={"steps": steps, "eval_every": -(-steps // 2), "save_every": None})
