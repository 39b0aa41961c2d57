"""Whole runs on quantised bases: what run.yaml says, what is refused, what merging tells."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from typer.testing import CliRunner

import microplane
from microplane.cli.app import app
from microplane.errors import ConfigError, MicroplaneWarning
from microplane.methods.base_format import number_format
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops import scratch
from microplane.nn.quantised import NF4Linear, QuantisedLinear
from microplane.runs import prepare
from microplane.runs.train import resume
from tests.tiny import SHALLOW, save_tiny_folder

SETS = {
    "train.epochs": 4,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.lr": 1e-2,
    "eval.rows": 2,
    "eval.max_new_tokens": 2,
    "model.compute": "float32",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    save_tiny_folder(folder / "model", **SHALLOW)
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(7)] * 8
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(place, method, **sets):
    sets = SETS | {"runs": str(place / "runs")} | sets
    return microplane.train(str(place / "model"), str(place / "rows.jsonl"), method=method, set=sets)


@pytest.fixture(scope="module")
def done(place):
    return train(place, "qlora")


@pytest.mark.parametrize(
    ("method", "sets", "told"),
    [
        ("qlora", {"model.compute": "int8"}, "int8 takes 40 times as long as float32 .* --set model.compute=auto"),
        ("qlora", {"model.compute": "bfloat16"}, "bfloat16 takes 40 times .* --set model.compute=auto"),
        (
            "lora",
            {"model.dtype": "bfloat16", "model.compute": "auto"},
            "bfloat16 takes 40 .* --set model.dtype=float32",
        ),
    ],
)
def test_a_format_that_is_slow_here_is_told(place, monkeypatch, method, sets, told):
    monkeypatch.setattr(prepare, "slowdown", lambda form: 40.0)
    with pytest.warns(MicroplaneWarning, match=told):
        train(place, method, **sets, **{"train.epochs": None, "train.steps": 1})


def test_qlora_runs_on_nf4_and_says_so(done):
    assert done.result["status"] == "success"
    assert done.metrics["after"]["loss"] < 0.7 * done.metrics["before"]["loss"]
    values = yaml.safe_load((done.folder / "run.yaml").read_text())
    told = {"revision": None, "dtype": "nf4", "compute": "float32", "cache_dequantised": False}
    assert values["model"] | told == values["model"]
    plain = train_parameters(done.result["model"])
    assert plain["parameters"] > 15_000
    assert plain["base_bytes"] < 3 * plain["parameters"]


def train_parameters(model):
    return {name: model[name] for name in ("parameters", "base_bytes")}


def test_what_was_saved_is_what_was_trained_and_the_distance_to_the_original_base_is_said(done):
    checks = {check["name"]: check for check in done.result["checks"]}
    assert checks["saved = trained"]["passed"]
    assert checks["saved = trained"]["value"] == 0.0
    assert checks["merged = unmerged"]["passed"]
    note = checks["merged into the base before nf4"]
    assert note["passed"] is None
    assert note["value"] > 1e-3


def test_loaded_it_stands_on_the_base_it_was_trained_on(done):
    model = done.load().model
    kinds = [module for module in model.modules() if isinstance(module, QuantisedLinear)]
    assert len(kinds) == 7
    assert all(isinstance(module, NF4Linear) and module.dtype == torch.float32 for module in kinds)
    assert not any(isinstance(m, QuantisedLinear) for m in microplane.load(done.folder, "float32").model.modules())


def test_merging_takes_the_original_base_and_says_how_far_that_is(done, tmp_path):
    merged = microplane.merge(done.folder, tmp_path / "merged")
    assert merged.difference < 1e-4
    assert merged.trained_base == "nf4"
    assert merged.from_trained > 1e-3
    told = CliRunner().invoke(app, ["merge", str(done.folder), str(tmp_path / "again")])
    assert "trained on the base in nf4 and is merged into the original one" in told.output
    assert not any(isinstance(m, QuantisedLinear) for m in microplane.load(tmp_path / "merged").model.modules())


def test_run_yaml_runs_again_to_the_same_bytes_and_resumes(done):
    from microplane.config.build import build, read_yaml
    from microplane.config.knobs import RunKnobs

    again = microplane.runs.train.train(knobs=build(RunKnobs, read_yaml(done.folder / "run.yaml")))
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (again.folder / name).read_bytes() == (done.folder / name).read_bytes()
    assert resume(again.folder).result["status"] == "success"


def test_lora_on_int8_kept_dequantised(place):
    run = train(place, "lora", **{"model.dtype": "int8", "model.cache_dequantised": True, "train.epochs": 1})
    assert run.result["model"]["dtype"] == "int8"
    assert run.result["checks"][1]["value"] == 0.0


@pytest.mark.parametrize(
    ("method", "sets", "told"),
    [
        ("full", {"model.dtype": "nf4"}, "model.dtype = nf4: the method full trains the model's own weights"),
        ("full", {"model.dtype": "int8"}, "model.dtype = int8: the method full trains the model's own weights"),
        ("qlora", {"model.dtype": "bfloat16"}, "model.dtype = bfloat16: the method qlora is for a base in nf4"),
        ("lora", {"model.dtype": "float32"}, "model.compute = float32 is for a quantised base"),
        (
            "lora",
            {"model.compute": "auto", "model.dtype": "float32", "model.cache_dequantised": True},
            "model.cache_dequantised is for a quantised base",
        ),
    ],
)
def test_what_cannot_be_is_refused(place, method, sets, told):
    with pytest.raises(ConfigError, match=told):
        train(place, method, **sets)


def test_number_formats_by_their_knobs():
    assert number_format("float32") == NumberFormat(torch.float32)
    assert number_format("nf4", "bfloat16", True) == NumberFormat(torch.bfloat16, "nf4", True)
    assert number_format("int8").dtype in (torch.float32, torch.bfloat16)
    assert (number_format("nf4", "bfloat16").name, number_format("bfloat16").name) == ("nf4", "bfloat16")


def test_products_in_8_bits_train_and_are_what_an_adapter_is_opened_with(place):
    done = train(place, "qlora", **{"model.compute": "int8"})
    assert done.result["status"] == "success"
    assert done.metrics["after"]["loss"] < 0.7 * done.metrics["before"]["loss"]
    assert yaml.safe_load((done.folder / "run.yaml").read_text())["model"]["compute"] == "int8"
    checks = {check["name"]: check for check in done.result["checks"]}
    assert checks["saved = trained"]["value"] == 0.0
    opened = [module for module in done.load().model.modules() if isinstance(module, QuantisedLinear)]
    assert opened
    assert all(module.in_8_bits for module in opened)


@pytest.mark.parametrize("small", [False, True], ids=["", "small evaluation batches"])
def test_after_writing_in_the_same_process_a_run_gives_the_same_bytes(place, done, small):
    """Validation in small batches leaves small buffers, so that writing is what first makes larger ones."""
    scratch._local.__dict__.clear()  # as in a process that has done nothing yet
    microplane.load(done.folder).generate("say aa", max_new_tokens=4)
    again = train(place, "qlora", **({"eval.batch_tokens": 16} if small else {}))
    assert again.result["status"] == "success"
    adapters = [run.folder / "adapter" / "adapter_model.safetensors" for run in (again, done)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
