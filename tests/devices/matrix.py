"""The whole step of a method on the pretended device, beside the same on the CPU.

    python -m tests.devices.matrix [CASE ...]      all cases without a name; writes a line of JSON for each

Of each case: attach, the start from data, steps with clipping and an optimizer, validation, the method's decisions,
saving and loading, a few generated tokens, the end of the method and its merge.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["MICROPLANE_NATIVE"] = "0"  # so that the CPU computes by the same operations

import torch

from microplane.checkpoints.adapter import save_adapter
from microplane.config.knobs import GenerateKnobs, TrainKnobs
from microplane.device import put
from microplane.evaluation.evaluate import validation_loss
from microplane.evaluation.probe import probe_logits, probe_rows
from microplane.inference.generate import confine, draw, narrow, penalise
from microplane.methods import make_method
from microplane.methods.method import attach_method
from microplane.models.contract import Model
from microplane.models.external.transformers import TransformersModel
from microplane.models.files.load import quantise_linears
from microplane.models.heads import embed
from microplane.nn.number_format import NumberFormat
from microplane.nn.rows import Rows
from microplane.training.activation_checkpointing import recomputed_in_backward
from microplane.training.init_from_data import init_from_data
from microplane.training.monitor import Movement
from microplane.training.resume import load_checkpoint, save_checkpoint
from microplane.training.step import Totals, TrainState, train_step
from tests.devices import pretend
from tests.devices.cases import ROWS, Case, cases
from tests.devices.families import FAMILIES, HEADS
from tests.tiny import MemoryDataset

STEPS = 4
ALL = FAMILIES | HEADS


def first_rows(data: MemoryDataset) -> MemoryDataset:
    cut = copy.copy(data)
    cut.rows, cut.lengths, cut.trained_counts = data.rows[:ROWS], data.lengths[:ROWS], data.trained_counts[:ROWS]
    return cut


def long_rows(length: int) -> MemoryDataset:
    """A few rows of so many tokens, of which the last ten are trained."""
    rows = [[(7 * row + 3 * place) % 90 + 2 for place in range(length)] for row in range(4)]
    return MemoryDataset([(row, [False] * (length - 10) + [True] * 10) for row in rows])


def build(case: Case, device: torch.device) -> Model:
    model = ALL[case.family].build()
    quantise_linears(model, NumberFormat(torch.float32, case.quantised, False, case.in_8_bits))
    model = model.to(device)
    if isinstance(model, TransformersModel):  # on a device that is written in Python, tied weights come apart
        model.net.tie_weights()
    return model


def run(case: Case, device: torch.device, folder: Path) -> dict[str, Any]:
    """What a case gives on one device: losses, and what the host waited for in each step."""
    family, method = ALL[case.family], make_method(case.method)
    data = long_rows(case.longest) if case.longest else first_rows(family.data)
    objective = family.objective
    model = build(case, device)
    stored = family.build().plain_tensors()
    torch.manual_seed(0)
    attach_method(method, model)
    knobs = TrainKnobs(**({"lr": 1e-3, "steps": STEPS, "micro_tokens": 32, "clip": 0.01} | case.train))
    init_from_data(objective, model, method, data, knobs, stored)
    state, totals, found = TrainState.of(objective, model, method, data, knobs), Totals(), {}
    movement, waited, losses = Movement.of(model), [], []
    with recomputed_in_backward(model, knobs.recompute):
        for _ in range(STEPS):
            model.train()
            with pretend.counted() as waits:
                losses.append(train_step(state, totals)["loss"])
            waited.append(dict(waits))
    history = [{"step": step, "validation_loss": 10.0 - step} for step in (0, 1)]
    method.after_validation(model, state.optimizer, history, 1000)
    movement.extend(model)
    save_checkpoint(folder / "resume", STEPS, model, method, state.optimizer, {})
    load_checkpoint(folder / "resume" / f"step-{STEPS:08d}", model, method, state.optimizer)
    found["validation"] = validation_loss(objective, model, data, 64).mean
    found["moved"] = len(movement.still(model))
    train_step(TrainState.of(objective, model, method, data, knobs), Totals())
    model.eval()
    if method.finishes:
        method.finish(model, lambda: 1.0)
    save_adapter(folder / "adapter", model, method, {}, None)
    probed = probe_logits(objective, model, probe_rows(objective, data))
    found["probe"] = [float(logits.float().sum()) for logits in probed]
    found["kept"] = from_kept_features(model)
    found["written"] = written(model) if model.KIND != "encoder" and model.task_head is None else embedded(model)
    if method.mergeable and not case.quantised:
        method.merge(model)
        probe_logits(objective, model, probe_rows(objective, data))
    return found | {"losses": losses, "waits": waited}


@torch.inference_mode()
def written(model: Model) -> list[list[int]]:
    """Some tokens drawn by all that chooses them."""
    cache, tokens = model.start_generation([[5, 6, 7], [8, 9, 10, 11]])
    knobs, chosen = GenerateKnobs(temperature=1.0, top_k=20, top_p=0.9, min_p=0.01), []
    for _ in range(3):
        rows = Rows.of(tokens, starts=cache.lengths).to(model.device)
        scores = penalise(model.logits(model(rows, cache)[rows.last]).float(), [[5], [6]], 1.2)
        picked = draw(narrow(confine(scores, [0, 0], [5, 5], model.generation_rules), knobs), [0.3, 0.6])
        chosen.append(picked)
        tokens = [[token] for token in picked]
    cache.select([1, 1, 0])
    if cache.rows_can_join:  # as a server's rows come and go
        other, more = model.start_generation([[7, 8], [6]])
        rows = Rows.of(more, starts=other.lengths).to(model.device)
        more = model.logits(model(rows, other)[rows.last]).float().argmax(-1).tolist()
        cache.join(other)
        order = cache.drop([1])
        joined = [tokens[1], tokens[1], tokens[0], *([token] for token in more)]
        tokens = [joined[row] for row in order]
    else:
        tokens = [tokens[1], tokens[1], tokens[0]]
    rows = Rows.of(tokens, starts=cache.lengths).to(model.device)
    scores = model.logits(model(rows, cache)[rows.last]).float()
    return [*chosen, scores.argmax(-1).tolist()]


@torch.no_grad()
def from_kept_features(model: Model) -> float:
    """What is computed of states that were kept (training/feature_cache.py): the blocks that train, and the head. Of an
    encoder-decoder, which keeps none, what its encoder gives."""
    rows = Rows.of([[5, 6, 7], [8, 9, 10, 11]]).to(model.device)
    if model.KIND == "encoder-decoder":
        return float(model.encode(rows).float().sum())
    if not model.frozen:
        return 0.0
    hidden = model.upper(put(model.lower(rows, model.frozen).cpu(), model.device), rows, model.frozen)
    return float((model.task_head.scores(hidden, rows) if model.task_head is not None else hidden).float().sum())


@torch.no_grad()
def embedded(model: Model) -> list[float]:
    rows = Rows.of([[5, 6, 7], [8, 9, 10, 11]]).to(model.device)
    return [float(embed(model, rows, pooling).sum()) for pooling in ("mean", "cls", "last")]


def outcome(case: Case, device: torch.device) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        try:
            here, there = run(case, torch.device("cpu"), Path(one)), run(case, device, Path(other))
        except Exception as error:
            place = [f for f in traceback.extract_tb(error.__traceback__) if pretend.SOURCE in f.filename]
            where = f"{Path(place[-1].filename).name}:{place[-1].lineno}" if place else "the test"
            if os.environ.get("TRACE"):
                traceback.print_exc()
            return {"case": case.name, "error": f"{type(error).__name__}: {error} at {where}"}
    return {"case": case.name, "cpu": here, "device": there}


def main(wanted: list[str]) -> None:
    device = pretend.register()
    torch.set_num_threads(1)
    for case in cases():
        if not wanted or case.name in wanted:
            started = time.perf_counter()
            print(json.dumps(outcome(case, device) | {"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
