"""Every knob of every method does something, or is refused: none is ignored in silence.

As tests/runs/test_knob_matrix.py, with the training loop on a tiny model in memory in place of a whole run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from microplane.config.build import choices
from microplane.config.knobs import RunKnobs, TrainKnobs
from microplane.errors import ConfigError
from microplane.evaluation.evaluate import evaluate_loss
from microplane.methods import METHODS, make_method
from microplane.methods.method import attach, state_of
from microplane.runs.check_knobs import check_knobs
from microplane.training.init_from_data import sample_losses
from microplane.training.loop import fit
from tests.knob_values import another
from tests.tiny import copy_task, tiny

TRAIN, HELD_OUT = copy_task(24), copy_task(8, seed=1)
STEPS = 8

# What is set with a knob and without it, where it needs that; and its value, where its declaration does not give one.
BESIDE: dict[str, dict[str, Any]] = {
    "start_rows": {"start": "eva", "rank": 2},
    "eva_rho": {"start": "eva", "rank": 2},
    "eva_tau": {"start": "eva", "rank": 2, "start_rows": 24},
    "ga_gamma": {"start": "lora_ga", "rank": 2},
    "start": {"rank": 2},
    "mlp_width": {"mlp": True},
    "scale": {"kind": "parallel"},
    "text": {"start": "text", "text_ids": ()},
    "text_ids": {"start": "text", "text": None},
}
OF_METHOD: dict[str, dict[str, Any]] = {  # of all knobs of a method
    "adalora": {"initial_rank": 4, "rank": 2, "interval": 1},
    "lora-auto": {"gain": 1e-4, "max_rank": 4, "warmup": 2},
    "nb-lora": {"rank": 4},
    "rslora": {"rank": 2},
    "vera": {"rank": 8},
    "scalora": {"interval": 2, "rank": 4},
    "prefix": {"length": 4},
    "prompt": {"length": 4},
}
VALUES: dict[str, Any] = {
    "targets": ("q",),
    "feedforward": ("up",),
    "attentions": ("decoder",),
    "start_rows": 2,
    "eva_tau": 0.01,
    "text": "other words",
    "text_ids": (5, 6, 7),
}
KNOBS = [
    (name, knob)
    for name, method in METHODS.items()
    for knob, field in method.model_fields.items()
    if len(choices(field)) != 1  # rank = auto is what it is
]


def left(folder: Path, knobs: dict[str, Any]) -> dict[str, Any]:
    """What a short run leaves: its log, and what is saved."""
    method, model = make_method(knobs), tiny()
    check_knobs(RunKnobs(method=knobs), method)
    method = method.with_tokens(lambda text: [ord(letter) % 90 for letter in text])
    torch.manual_seed(0)
    attach(method, model)
    method.prepare(model, sample_losses(model, TRAIN, method.prepare_rows, 0, 64))
    saved: dict[str, Any] = {}

    def save(step: int, loss: float) -> None:
        saved.update({name: (tensor.shape, tensor.sum().item()) for name, tensor in state_of(method, model).items()})

    settings = TrainKnobs(steps=STEPS, batch_size=8, lr=1e-2, eval_every=2, patience=0, threads=1)
    validate = lambda m: evaluate_loss(m, HELD_OUT, 64)  # noqa: E731
    outcome = fit(model, method, TRAIN, settings, folder, validate=validate, save_best=save, identity={})
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"log": log, "saved": saved, "decisions": outcome.decisions}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    known: dict[str, Any] = {}

    def run(knobs: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(knobs, sort_keys=True)
        if key not in known:
            known[key] = left(tmp_path_factory.mktemp("without"), knobs)
        return known[key]

    return run


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.mark.parametrize(("name", "knob"), KNOBS)
def test_a_knob_changes_what_a_method_does(name, knob, once, tmp_path):
    field = METHODS[name].model_fields[knob]
    together = OF_METHOD.get(name, {}) | {
        k: v for k, v in BESIDE.get(knob, {}).items() if k in METHODS[name].model_fields
    }
    beside = {"name": name} | {other: value for other, value in together.items() if other != knob}
    value = VALUES[knob] if knob in VALUES else another(f"method.{knob}", field)
    assert left(tmp_path, beside | {knob: value}) != once(beside), f"method.{knob} = {value} is ignored in silence"
