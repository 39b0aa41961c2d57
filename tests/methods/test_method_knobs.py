"""Every knob of every method does something, or is refused: none is ignored in silence.

As tests/runs/test_knob_matrix.py, with the training loop on a tiny model in memory in place of a whole run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from microplane.config.build import choices
from microplane.config.knobs import RunKnobs, TrainKnobs
from microplane.errors import ConfigError
from microplane.evaluation.evaluate import evaluate_loss
from microplane.methods import METHODS, make_method
from microplane.methods.method import attach_method, state_of
from microplane.runs.check_knobs import check_knobs
from microplane.training import resume
from microplane.training.init_from_data import sample_losses
from microplane.training.loop import fit
from tests.contract.families import FAMILIES
from tests.knob_values import another

STEPS, OF_GROWING = 6, 12  # the latter where ranks grow from validation to validation

# What is set with a knob and without it, where it needs that; and its value, where its declaration does not give one.
# A name is that of a knob in all methods that have it, or of one method's.
BESIDE: dict[str, dict[str, Any]] = {
    "start": {"rank": 2},
    "prompt.start": {},
    "prefix.start": {},
    "start_rows": {"start": "eva", "rank": 2},
    "eva_rho": {"start": "eva", "rank": 2},
    "eva_tau": {"start": "eva", "rank": 2, "start_rows": 24},
    "ga_gamma": {"start": "lora_ga", "rank": 2},
    "mlp_width": {"mlp": True},
    "adalora.rank": {"initial_rank": 24},
    "lora-auto.gain": {"energy": 0.1},
    "bottleneck.scale": {"kind": "parallel"},
    "prompt.text": {"start": "text", "text": "some words"},  # not without one
    "prompt.text_ids": {"start": "text", "text_ids": (1, 2, 3)},
}
OF_METHOD: dict[str, dict[str, Any]] = {  # beside all knobs of a method
    "adalora": {"initial_rank": 4, "rank": 2, "interval": 1},
    "lora-auto": {"gain": 1e-4, "max_rank": 4, "warmup": 2},
    "nb-lora": {"rank": 4},
    "scalora": {"interval": 2, "rank": 4},
}
VALUES: dict[str, Any] = {
    "targets": ("q",),
    "interval": 2,
    "start_rows": 2,
    "eva_tau": 0.01,
    "ia3.feedforward": ("up",),
    "adalora.rank": 3,
    "adalora.warm_share": 0.4,
    "lora-auto.max_rank": 2,
    "lora-auto.gain": 0.9,
    "lora-auto.warmup": 1,
    "nb-lora.rank": 8,
    "bottleneck.norms": True,
    "prompt.start": "random",
    "prompt.text": "other words",
    "prompt.text_ids": (5, 6, 7),
    "prefix.attentions": ("cross",),
    "last-n.n": 1,
}
FAMILY = {"prefix.attentions": "t5"}
KNOBS = [
    (name, knob)
    for name, method in METHODS.items()
    for knob, field in method.model_fields.items()
    if len(choices(field)) != 1  # rank = auto is what it is
    and (name, knob) != ("scalora", "dropout")  # refused whenever it is set
]
REFUSED = [
    ({"name": "scalora", "dropout": 0.5}, "method.dropout = 0.5: must be 0"),
    (
        {"start_rows": 32},
        "method.start_rows = 32: it belongs to method.start=eva or lora_ga, and method.start = 'zero'",
    ),
    ({"start": "lora_ga", "eva_rho": 1.0}, "method.eva_rho = 1.0: it belongs to method.start=eva, and"),
    ({"name": "dora", "eva_tau": 0.5}, "method.eva_tau = 0.5: it belongs to method.start=eva, and"),
    ({"name": "adalora", "start": "eva", "ga_gamma": 8.0}, "method.ga_gamma = 8.0: it belongs to method.start=lora_ga"),
    (
        {"name": "bottleneck", "width": 8, "reduction": 2},
        "method.reduction = 2: method.width = 8 gives the width itself",
    ),
    ({"name": "bottleneck", "scale": 2.0}, "method.scale = 2.0: only kind parallel is scaled"),
    ({"name": "prefix", "mlp_width": 8}, "method.mlp_width = 8: method.mlp is off"),
    ({"name": "nb-lora", "bounds": "fixed", "temperature": 2.0}, "method.temperature = 2.0: the bounds are all equal"),
    ({"name": "nb-lora", "rank": 1, "p": 3.0}, "method.p = 3.0: method.rank = 1 has one singular value"),
    ({"name": "adalora", "rank": 24, "interval": 5}, "method.interval = 5: method.initial_rank = method.rank = 24"),
    ({"name": "prompt", "text": "some words"}, "start=text and a text belong together"),
]


def left(folder: Path, family: str, knobs: dict[str, Any]) -> dict[str, Any]:
    """What a short run leaves: its log, and what is saved."""
    method = make_method(knobs)
    check_knobs(RunKnobs(method=knobs), method)
    method = method.with_tokens(lambda text: [ord(letter) % 90 for letter in text])
    model, data, objective = FAMILIES[family].build(), FAMILIES[family].data, FAMILIES[family].objective
    torch.manual_seed(0)
    attach_method(method, model)
    method.init_from_data(model, sample_losses(objective, model, data, method.init_rows, 0, 64))
    saved: dict[str, Any] = {}

    def save(step: int, loss: float) -> None:
        saved.update({name: (tensor.shape, tensor.sum().item()) for name, tensor in state_of(method, model).items()})

    steps = OF_GROWING if method.name == "lora-auto" else STEPS
    settings = TrainKnobs(steps=steps, batch_size=8, lr=1e-2, eval_every=steps // 3, patience=0)
    outcome = fit(
        model,
        method,
        data,
        settings,
        folder,
        objective=objective,
        validate=lambda m: evaluate_loss(objective, m, data, 512),
        save_best=save,
        identity={},
    )
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"log": log, "saved": saved, "decisions": outcome.decisions}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    known: dict[str, Any] = {}

    def run(family: str, knobs: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps([family, knobs], sort_keys=True)
        if key not in known:
            known[key] = left(tmp_path_factory.mktemp("without"), family, knobs)
        return known[key]

    return run


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Nothing is resumed here."""
    monkeypatch.setattr(resume, "save_checkpoint", lambda *given: None)


@pytest.mark.parametrize(("name", "knob"), KNOBS)
def test_a_knob_changes_what_a_method_does(name, knob, once, tmp_path):
    declared, own = METHODS[name].model_fields, f"{name}.{knob}"
    family = FAMILY.get(own, "llama-tied")
    together = OF_METHOD.get(name, {}) | BESIDE.get(own, BESIDE.get(knob, {}))
    if own not in ("prompt.text", "prompt.text_ids"):
        together = {other: value for other, value in together.items() if other != knob}
    value = VALUES.get(own, VALUES.get(knob)) or another(f"method.{knob}", declared[knob])
    beside = {"name": name} | together
    assert left(tmp_path, family, beside | {knob: value}) != once(family, beside), (
        f"method.{knob} = {value} is ignored in silence"
    )


def test_the_same_run_leaves_the_same(once, tmp_path):
    """Or the test above would prove nothing."""
    assert left(tmp_path, "llama-tied", {"name": "lora"}) == once("llama-tied", {"name": "lora"})


@pytest.mark.parametrize(("knobs", "message"), REFUSED)
def test_a_knob_that_would_change_nothing_is_refused(knobs, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_knobs(RunKnobs(method=knobs), make_method(knobs))


def test_tokens_that_are_not_those_of_the_text_are_refused():
    """As where the text in a run.yaml was changed, and the tokens beside it were not."""
    method = make_method({"name": "prompt", "start": "text", "text": "ab", "text_ids": [1, 2]})
    assert method.with_tokens(lambda text: [1, 2]) == method
    message = "method.text_ids = [1, 2] are not the tokens of method.text = 'ab': these are [1, 3] in this model"
    with pytest.raises(ConfigError, match=re.escape(message)):
        method.with_tokens(lambda text: [1, 3])
