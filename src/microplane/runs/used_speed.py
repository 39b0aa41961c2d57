"""How fast a tuned model is where it is used: merged into plain weights where its method merges, opened from its files
in the format that multiplies fastest here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from microplane.config.knobs import GenerateKnobs
from microplane.errors import MicroplaneError, first_line, notice
from microplane.evaluation.evaluate import choose_rows
from microplane.hardware import free_memory
from microplane.inference.generate import generate
from microplane.inference.pipeline import load
from microplane.methods.base_format import number_format
from microplane.models.contract import Model, in_eval_mode
from microplane.models.files.load import load_model
from microplane.nn.number_format import fastest_dtype
from microplane.nn.quantised import weight_count
from microplane.objectives.collate import batch_of
from microplane.runs.prepare import Prepared

PROMPTS, TOKENS = 8, 32  # that are continued at once, and by how many tokens each
LABELLED = 64  # rows that a task head labels, at most
TIMES = 3  # of which the median counts


@dataclass(frozen=True)
class UsedSpeed:
    """Of the tuned model.

    Attributes:
        per_second: tokens that it writes to eight prompts at once, or rows that its task head labels.
        unit: tokens or rows.
        merged: whether it was plain weights, or the base with the adapter beside it.
    """

    per_second: float
    unit: str
    merged: bool


def used_speed(prepared: Prepared, folder: Path) -> UsedSpeed | None:
    """Of what a run has saved; None where nobody asks, or it cannot be opened once more, for want of memory too."""
    if not prepared.config.eval.speed or 4 * weight_count(prepared.shapes.plain) > free_memory() / 2:
        return None
    try:
        model = _opened(prepared, folder)
    except MicroplaneError as error:  # as of new weights, which no file holds: the run is done all the same
        notice(f"the speed in use was not measured: {first_line(error)}")
        return None
    writes = not prepared.objective.needs_head
    work, done = _writing(prepared, model) if writes else _labelling(prepared, model)
    with in_eval_mode(model), torch.no_grad():
        work()  # compiles what is compiled
        seconds = median(_timed(work) for _ in range(TIMES))
    merged = prepared.method.mergeable or prepared.method.whole_model
    return UsedSpeed(done / seconds, "tokens" if writes else "rows", merged)


def _opened(prepared: Prepared, folder: Path) -> Model:
    method, device = prepared.method, prepared.form.device
    if method.whole_model:
        return load_model(folder / "adapter", number_format("auto", device=device))
    if not method.mergeable:
        return load(folder, device=str(device)).model
    model = load(folder, dtype="float32", device=str(device)).model
    method.merge(model)
    return model.to(fastest_dtype(device=device))


def _writing(prepared: Prepared, model: Model) -> tuple[Callable[[], object], int]:
    """Continue some prompts, and how many tokens that gives."""
    rows = choose_rows(prepared.held_out, PROMPTS)
    prompts = [prepared.held_out.prompt_and_target(row)[0] or prepared.held_out[row][0][:8].tolist() for row in rows]
    room = TOKENS
    if (context := model.max_row_tokens) and model.KIND == "decoder":
        room = max(1, min(TOKENS, context - max(map(len, prompts))))
    knobs, tokenizer = GenerateKnobs(max_new_tokens=room), prepared.tokenizer.for_targets
    return lambda: generate(model, tokenizer, prompts, knobs, ()), room * len(prompts)


def _labelling(prepared: Prepared, model: Model) -> tuple[Callable[[], object], int]:
    """Label some rows, and how many they are."""
    rows = choose_rows(prepared.held_out, LABELLED)
    batches = [
        batch_of(prepared.objective, model, prepared.held_out, rows[start : start + PROMPTS])
        for start in range(0, len(rows), PROMPTS)
    ]
    return lambda: [prepared.objective.loss(model, batch) for batch in batches], len(rows)


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
