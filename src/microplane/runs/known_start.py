"""The validation before a run's first step, remembered: runs that differ in their rate, their length or the seed of an
adapter that changes nothing yet, as trials of a comparison do, begin with the same losses, and measure them once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from microplane.cache.entries import remembered
from microplane.files import cache_dir, write_aside
from microplane.hardware import processor
from microplane.models.contract import Model
from microplane.models.external.transformers import TransformersModel
from microplane.models.files.opened import checksum, tensors_of
from microplane.models.heads import head_metadata
from microplane.nn.ops import native
from microplane.objectives.base import AnyObjective
from microplane.runs.prepare import Prepared
from microplane.training.monitor import ValidationLoss

VERSION = 1  # of what is kept, and of all code that decides it; raise it when either changes
OWN = __name__.partition(".")[0]
COURSE = {"lr", "steps", "epochs", "eval_every", "save_every", "patience"}  # what decides nothing before the first step


def validated_once(
    prepared: Prepared, model: Model, how: list[Any], validate: Callable[[], ValidationLoss]
) -> ValidationLoss:
    """What `validate` gives for `model`; that of an earlier run with the same weights and rows where there is one.

    Args:
        how: what else decides it, as JSON has it.
    """
    place = _place(prepared, model, how)
    if place is None:
        return validate()
    with suppress(KeyError, TypeError, ValueError):  # not there, or damaged
        kept = remembered(place)
        groups = tuple((float(loss), int(count)) for loss, count in kept["groups"])
        if math.isfinite(kept["mean"]) and kept["ignores_inputs"] in (True, False, None):
            return ValidationLoss(float(kept["mean"]), groups, kept["ignores_inputs"])
    found = validate()
    if math.isfinite(found.mean):
        write_aside(place, json.dumps(asdict(found)).encode())
    return found


def _place(prepared: Prepared, model: Model, how: list[Any]) -> Path | None:
    """Named by every tensor of the model with its method, and by all else that decides the loss. None where code of
    others does, which may be another one tomorrow."""
    objective: AnyObjective = prepared.weighted_objective
    whose = objective, prepared.objective, prepared.method, model
    if any(type(one).__module__.partition(".")[0] != OWN for one in whose) or not is_dataclass(objective):
        return None
    if isinstance(model, TransformersModel):
        return None
    known = prepared.identity()
    drawn = _drawn(prepared, model)
    course = COURSE if drawn is None else {*COURSE, "seed"}
    known["train"] = {name: value for name, value in known["train"].items() if name not in course}
    parts = [
        VERSION,
        version(OWN),
        known,
        repr(objective),
        how,
        prepared.form.cached,
        head_metadata(model),
        {name: checksum(tensor) for name, tensor in tensors_of(model) if tensor.data_ptr() not in (drawn or ())},
        [processor(), native.library() is not None],
    ]
    key = sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_dir() / "starts" / f"{key}.json"


def _drawn(prepared: Prepared, model: Model) -> set[int] | None:
    """Where the tensors lie that a seed has decided and that change nothing before the first step: a new adapter's,
    whose method leaves the output as it is, to the bit. None where a seed changes more than that, but for new weights
    of the base, which are compared themselves."""
    method = prepared.method
    new = prepared.config.model.adapter is None and method.starts_at_base and not method.init_rows
    if not new or method.trains != "adapter" or model.task_head is not None:
        return None
    return {tensor.data_ptr() for tensor in method.state(model).values()}
