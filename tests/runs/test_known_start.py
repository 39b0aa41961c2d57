"""The validation before the first step is made once for runs that begin alike, and anew where anything differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import microplane
from microplane.files import cache_dir
from microplane.methods.lora import LoRA
from microplane.objectives.next_token import NextToken
from microplane.runs import fit
from microplane.runs.train import Run
from tests.cases import some
from tests.data.preparing.test_doubts import reviews
from tests.labels import encoder_folder
from tests.runs.test_check import write
from tests.runs.test_stages import counted, place, train

__all__ = ["place"]

SETS: dict[str, Any] = {"train__steps": 2, "train__eval_every": 2, "train__lr": 0.01, "eval__rows": 0}


def run(place: Path, method: str = "lora", **sets: Any) -> Run:
    return train(place, method, **SETS | sets)


def start(done: Run) -> dict[str, Any]:
    first: dict[str, Any] = json.loads((done.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    return first


def weights(done: Run) -> bytes:
    (file,) = (done.folder / "adapter").glob("*.safetensors")
    return file.read_bytes()


@pytest.mark.parametrize("method", ["lora", "full", "vera", "prefix"])
def test_runs_of_other_rates_and_lengths_begin_with_what_is_known(place, monkeypatch, method):
    """And train to the very bits that they train to without it."""
    validated = counted(monkeypatch, fit, "validation_loss")
    first = run(place, method)
    assert len(validated) == 2
    other = {"train__lr": 0.003, "train__steps": 4, "train__patience": 0}
    second = run(place, method, **other)
    assert len(validated) == 2 + 2
    assert start(second) == start(first)
    for file in (cache_dir() / "starts").iterdir():
        file.unlink()
    alone = run(place, method, **other)
    assert len(validated) == 4 + 3
    assert (alone.folder / "metrics.jsonl").read_bytes() == (second.folder / "metrics.jsonl").read_bytes()
    assert weights(alone) == weights(second)
    ends = [done.result["train"]["validation_loss"] for done in (alone, second)]
    assert ends[0] == ends[1]


ADAPTERS = ["lora", "dora", "vera", "nb-lora", "adalora", "lora-fa", "scalora", "bottleneck"]


@pytest.mark.parametrize("method", some(ADAPTERS, ADAPTERS[:4]))
def test_what_a_seed_draws_of_an_adapter_that_changes_nothing_yet_is_the_same_start(place, monkeypatch, method):
    """To the bit: what was measured with another seed is what this one gives."""
    validated = counted(monkeypatch, fit, "validation_loss")
    first, times = run(place, method, train__steps=6), len(validated)
    known = run(place, method, train__steps=6, train__seed=1)
    assert len(validated) == 2 * times - 1
    assert start(known) == start(first)
    for file in (cache_dir() / "starts").iterdir():
        file.unlink()
    alone = run(place, method, train__steps=6, train__seed=1)
    assert (alone.folder / "metrics.jsonl").read_bytes() == (known.folder / "metrics.jsonl").read_bytes()
    assert weights(alone) == weights(known) != weights(first)


@pytest.mark.parametrize("method", ["prefix", "last-n", "lora"])
def test_a_seed_that_changes_the_start_has_it_validated_anew(place, monkeypatch, method):
    """Of a prompt, of new weights."""
    sets = {"model__init": "random"} if method != "prefix" else {}
    run(place, method, **sets)
    validated = counted(monkeypatch, fit, "validation_loss")
    run(place, method, train__seed=1, **sets)
    assert len(validated) == 2


def test_a_start_from_an_adapter_is_its_own(place, monkeypatch):
    first, other = run(place), run(place, train__seed=1)
    validated = counted(monkeypatch, fit, "validation_loss")
    losses = [
        start(run(place, model__adapter=str(done.folder), model__name=None))["validation_loss"]
        for done in (first, other, first)
    ]
    assert losses[0] == losses[2] != losses[1]
    assert len(validated) == 2 + 2 + 1


CHANGES: list[dict[str, Any]] = [
    {"train__seed": 1, "method__start": "pissa"},
    {"method__alpha": 3.0},
    {"method__rank": 2},
    {"eval__batch_tokens": 64},
    {"data__validation_share": 0.4},
    {"data__template": "plain", "data__system": "Answer."},
    {"model__dtype": "bfloat16"},
    {"model__dtype": "int8"},
    {"train__threads": 2},
]


@pytest.mark.parametrize("change", some(CHANGES, CHANGES[1:6:2]), ids=str)
def test_what_changes_it_has_it_validated_anew(place, monkeypatch, change):
    run(place)
    validated = counted(monkeypatch, fit, "validation_loss")
    run(place, **change)
    assert len(validated) == 2


def test_other_weights_of_the_same_files_are_another_start(place, monkeypatch):
    """What init_from_data, or a method, makes of the base is seen in the tensors themselves."""
    run(place)
    validated = counted(monkeypatch, fit, "validation_loss")
    attach = fit.attach_method

    def moved(method, model):
        attach(method, model)
        next(iter(model.parameters())).data.mul_(2.0)

    monkeypatch.setattr(fit, "attach_method", moved)
    run(place)
    assert len(validated) == 2


def test_how_a_head_pools_is_another_start(place, monkeypatch):
    """A new head has the same tensors, however it pools."""
    model, data = encoder_folder(place / "encoder", num_hidden_layers=1), write(place, reviews(40))
    validated = counted(monkeypatch, fit, "validation_loss")
    losses = []
    for pooling, times in (("mean", 2), ("last", 2), ("mean", 1)):
        sets = {"model.pooling": pooling, "model.dtype": "float32", "train.steps": 1, "runs": str(place / "runs")}
        losses.append(start(microplane.train(model, data, set=sets))["validation_loss"])
        assert len(validated) == times
        validated.clear()
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("whose", [LoRA, NextToken])
def test_code_of_others_is_asked_each_time(place, monkeypatch, whose):
    """Which may be edited between two runs."""
    monkeypatch.setattr(whose, "__module__", "theirs")
    run(place)
    validated = counted(monkeypatch, fit, "validation_loss")
    run(place)
    assert len(validated) == 2


@pytest.mark.parametrize(
    "content", [b"{", b"{}", b"[]", b'{"mean": 1.0}', b'{"mean": NaN, "groups": [], "ignores_inputs": null}']
)
def test_a_damaged_memory_is_made_again(place, content):
    first = run(place)
    (file,) = (cache_dir() / "starts").iterdir()
    before = file.read_bytes()
    file.write_bytes(content)
    assert start(run(place)) == start(first)
    assert file.read_bytes() == before
