"""What the untouched model does on the held-out rows, measured once for all runs on the same data and base."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch

from microplane.cache.entries import remembered
from microplane.config.knobs import ModelKnobs
from microplane.data.progress import Watcher, expect
from microplane.device import name_of
from microplane.errors import TrainingError
from microplane.evaluation.evaluate import describe_scores
from microplane.evaluation.few_shot import Asked, few_shot_answers, room_of, with_examples
from microplane.evaluation.trivial import Trivial
from microplane.files import cache_dir, write_aside
from microplane.hardware import processor
from microplane.models.contract import Model
from microplane.models.files.opened import OpenedBase, checksum
from microplane.models.heads import head_metadata
from microplane.nn.ops import native
from microplane.nn.quantised import first_not_finite
from microplane.objectives.base import Measured
from microplane.runs.prepare import Prepared
from microplane.runs.result import GeneralSection

VERSION = 7  # of what is kept, and of all code that decides it; raise it when either changes

Measure = Callable[[Model, str], Measured]  # of a model, and whose it is


def measure_base(prepared: Prepared, base: OpenedBase, measure: Measure, watch: Watcher) -> Measured:
    """The figures of the base, which nothing is attached to yet; those of an earlier run where there are any.

    Raises:
        TrainingError: if its loss is not a finite number.
    """
    place = _place(_rows(prepared), prepared, base)
    with suppress(KeyError, TypeError):  # not there, or damaged: measure again
        found = cast(Measured, remembered(place))
        shape = (len(found["prompts"]), len(found["targets"]), len(found["texts"]))
        if len(set(shape)) == 1 and math.isfinite(found["scores"]["loss"]):
            watch.say(f"untouched model: {describe_scores(found['scores'])} (measured by an earlier run)")
            expect(watch, cast(dict[str, Any], found).pop("seconds", 0.0))
            return found
    began = time.monotonic()
    measured = measure(base.model, "untouched model")
    check_loss(measured, base.model, prepared.config.model, "the untouched model")
    kept = {**measured, "seconds": time.monotonic() - began}
    write_aside(place, json.dumps(kept, ensure_ascii=False).encode())
    return measured


def check_loss(measured: Measured, model: Model, knobs: ModelKnobs, whose: str) -> None:
    """Raises: TrainingError, if the loss is not a finite number."""
    if not math.isfinite(loss := measured["scores"]["loss"]):
        wrong = first_not_finite(model)
        why = f"its tensor {wrong} holds NaN or infinity. Fetch the model again"
        way = "The weights themselves are too large" if knobs.dtype == "float32" else "Set model.dtype=float32"
        overflow = f"its weights are numbers, but sums overflow in {knobs.dtype}. {way}"
        raise TrainingError(f"the loss of {whose} {knobs.name} is {loss}: {why if wrong else overflow}")


def measure_few_shot(prepared: Prepared, base: OpenedBase, watch: Watcher) -> dict[str, Trivial]:
    """What the base answers with some training rows before each question, by the name of this predictor; nothing where
    none are asked for, or none fit."""
    config, rows, held_out = prepared.config, prepared.answer_rows, prepared.held_out
    if not config.eval.shots or not rows or prepared.objective.needs_head:
        return {}
    summary, train = prepared.splits.summary, prepared.splits.train
    system = summary.shared_system if config.data.system is None else config.data.system
    asked = Asked(prepared.objective, prepared.tokenizer, config.data.template, system)
    room = room_of(base.model, held_out, rows, config.eval)
    shots = with_examples(asked, train, held_out, rows, config.eval.shots, room)
    if not shots.examples:
        watch.say(
            "few-shot: not measured, as no training row fits before each question, or rows are no single questions"
        )
        return {}
    name = f"untouched model, {shots.examples}-shot"
    place = _place(["few-shot", shots.prompts, _rows(prepared)], prepared, base)
    if (kept := remembered(place)) and kept.keys() == {"scores", "texts"} and len(kept["texts"]) == len(rows):
        found = Trivial(kept["scores"], kept["texts"])
    else:
        found = few_shot_answers(asked, base.model, shots, held_out, rows, config.eval, watch.progress(name))
        write_aside(place, json.dumps(found._asdict(), ensure_ascii=False).encode())
    watch.say(f"{name}: {describe_scores(found.scores)}")
    return {name: found}


def measure_general(prepared: Prepared, base: OpenedBase, watch: Watcher) -> float | None:
    """The loss of the base on general text; that of an earlier run where there is one, and None where none is asked."""
    if (general := prepared.general) is None:
        return None
    batch_tokens = prepared.config.eval.batch_tokens
    place = _place([general.rows.fingerprint, general.objective.name, batch_tokens], prepared, base)
    if isinstance(kept := remembered(place).get("general"), float):
        return kept
    loss = general.loss(base.model, batch_tokens, watch.progress("general text of the untouched model"))
    write_aside(place, json.dumps({"general": loss}).encode())
    return loss


def forgotten(prepared: Prepared, before: float | None, tuned: Model, watch: Watcher) -> GeneralSection | None:
    """What the tuned model loses more on general text.

    Args:
        before: what `measure_general` gave.
    """
    if (general := prepared.general) is None or before is None:
        return None
    after = general.loss(tuned, prepared.config.eval.batch_tokens, watch.progress("general text of the tuned model"))
    watch.say(str(told := GeneralSection.of(general, before, after)))
    return told


def _rows(prepared: Prepared) -> list[Any]:
    """What decides the figures of the held-out rows: these, how they are written, and how answers are measured."""
    config = prepared.config
    return [
        prepared.held_out.fingerprint,
        prepared.answer_rows,
        [config.data.template, config.data.system],
        config.eval.model_dump(mode="json", exclude={"general", "shots"}),
    ]


def _numbers(model: Model) -> list[Any]:
    """What a new head for numbers says at first, which follows from the training rows."""
    head = model.task_head
    if head is None or head.config.task != "regression" or head.last is None:
        return []
    return [head.unit, *(checksum(parameter) for parameter in head.last.parameters())]


def _place(measured: list[Any], prepared: Prepared, base: OpenedBase) -> Path:
    """Named by all that decides a figure: what is measured, the weights, the head, and how both are multiplied."""
    parts = [
        VERSION,
        measured,
        prepared.tokenizer.fingerprint,
        base.digest,
        head_metadata(base.model),
        # from which a new head is drawn
        prepared.config.train.seed if base.model.task_head is not None else None,
        [prepared.form.name, prepared.form.compute, prepared.form.cached],
        [torch.get_num_threads(), torch.__version__, processor(), native.library() is not None],
    ]
    if prepared.form.device.type != "cpu":
        parts.append(name_of(prepared.form.device))
    parts += _numbers(base.model)
    key = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return cache_dir() / "baseline" / f"{key}.json"
