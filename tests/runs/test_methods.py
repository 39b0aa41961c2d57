"""The whole job with the methods that decide during a run, finish it, or need a base of their own."""

from __future__ import annotations

import json

import pytest
import torch

import microplane
from microplane.adapters.convert import convert
from microplane.cli.terminal import decision_table
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers
from tests.tiny import save_tiny_folder

SETS = {
    "train.steps": 20,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.lr": 1e-2,
    "train.eval_every": 4,
    "eval.rows": 2,
    "eval.max_new_tokens": 2,
}
METHODS = [
    {"name": "lora", "rank": "auto", "start_rank": 1, "max_rank": 4, "gain": 0.9, "warmup": 2},
    {"name": "adalora", "rank": 1, "initial_rank": 2, "interval": 2},
    {"name": "scalora", "rank": 2, "interval": 2},
    {"name": "nb-lora", "rank": 2},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save_tiny_folder(folder / "model")
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(7)] * 6
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("knobs", METHODS, ids=lambda knobs: knobs["name"])
def test_a_run_ends_with_all_its_checks_passed_and_converts(place, knobs):
    sets = SETS | {"runs": str(place / "runs")} | {f"method.{name}": value for name, value in knobs.items()}
    done = microplane.train(str(place / "model"), str(place / "rows.jsonl"), set=sets)
    assert done.result["status"] == "success"
    assert all(check["passed"] for check in done.result["checks"]), done.result["checks"]
    decisions = done.result["train"]["decisions"]
    assert bool(decisions) == (knobs["name"] != "nb-lora")
    told = decision_table(decisions)
    assert len(told) == (len(decisions) + 1 if decisions else 0)
    assert all(one["decision"] in line for one, line in zip(decisions, told[1:], strict=True))
    loaded = done.load()
    if knobs["name"] == "scalora":
        assert next(loaded.model.parameters()).dtype == torch.float32
    if knobs["name"] == "adalora":
        ranks = [len(module.lora_E) for _, module in adapted_layers(loaded.model, AdaptedLinear)]
        assert sum(ranks) == len(ranks)
    converted = convert(done.folder, place / f"{knobs['name']}-lora")
    assert converted.error < 1e-5 or knobs["name"] == "scalora"
    again = microplane.train(str(place / "model"), str(place / "rows.jsonl"), set=sets)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (again.folder / name).read_bytes() == (done.folder / name).read_bytes()
