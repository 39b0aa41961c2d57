"""What the untouched model does on the held-out rows, measured once for all runs on the same data and base."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch

from microplane.cache.entries import touch
from microplane.data.progress import Watcher
from microplane.device import name_of
from microplane.errors import TrainingError
from microplane.evaluation.evaluate import describe_scores
from microplane.files import cache_dir, write_aside
from microplane.hardware import processor
from microplane.models.contract import Model, first_not_finite
from microplane.models.files.opened import OpenedBase
from microplane.models.heads import head_metadata
from microplane.nn.ops import native
from microplane.objectives.base import Measured
from microplane.runs.prepare import Prepared

VERSION = 6  # of what is kept, and of all code that decides it; raise it when either changes

Measure = Callable[[Model, str], Measured]  # of a model, and whose it is


def measure_base(prepared: Prepared, base: OpenedBase, measure: Measure, watch: Watcher) -> Measured:
    """The figures of the base, which nothing is attached to yet; those of an earlier run where there are any.

    Raises:
        TrainingError: if its loss is not a finite number.
    """
    place = _place(prepared, base)
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged: measure again
        found: Measured = json.loads(place.read_text(encoding="utf-8"))
        shape = (len(found["prompts"]), len(found["targets"]), len(found["texts"]))
        if len(set(shape)) == 1 and math.isfinite(found["scores"]["loss"]):
            touch(place)  # the cache gives up first what was not used for longest
            watch.say(f"untouched model: {describe_scores(found['scores'])} (measured by an earlier run)")
            return found
    measured = measure(base.model, "untouched model")
    if not math.isfinite(loss := measured["scores"]["loss"]):
        name, dtype = prepared.config.model.name, prepared.config.model.dtype
        wrong = first_not_finite(base.model)
        why = f"its tensor {wrong} holds NaN or infinity. Fetch the model again"
        overflow = f"its weights are numbers, but sums overflow in {dtype}. Set model.dtype=float32"
        raise TrainingError(f"the loss of the untouched model {name} is {loss}: {why if wrong else overflow}")
    write_aside(place, json.dumps(measured, ensure_ascii=False).encode())
    return measured


def _place(prepared: Prepared, base: OpenedBase) -> Path:
    return cache_dir() / "baseline" / f"{_key(prepared, base)}.json"


def _key(prepared: Prepared, base: OpenedBase) -> str:
    """Of all that decides the figures: rows, weights, head, how both are multiplied, and how answers are measured."""
    config = prepared.config
    parts = [
        VERSION,
        prepared.held_out.fingerprint,
        prepared.answer_rows,
        prepared.tokenizer.fingerprint,
        base.digest,
        head_metadata(base.model),
        config.train.seed if base.model.task_head is not None else None,  # from which a new head is drawn
        [prepared.form.name, prepared.form.compute, prepared.form.cached],
        [config.data.template, config.data.system],
        config.eval.model_dump(mode="json"),
        [torch.get_num_threads(), torch.__version__, processor(), native.library() is not None],
    ]
    if prepared.form.device.type != "cpu":
        parts.append(name_of(prepared.form.device))
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
