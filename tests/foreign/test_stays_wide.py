"""What int8 and nf4 do not reach in a model of transformers is counted and said: experts that are one tensor."""

from __future__ import annotations

import json

import pytest
import torch

import microplane
from microplane.config.build import build
from microplane.config.knobs import RunKnobs
from microplane.data.progress import Silent
from microplane.models.files.load import build_on_meta, load_model, open_checkpoint
from microplane.models.stays_wide import stays_wide, told_of_what_stays_wide
from microplane.nn.number_format import NumberFormat
from microplane.nn.quantised import QuantisedLinear
from tests.foreign.writer_folders import save_writer
from tests.tiny import save_tiny_folder

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("wide")
    return {name: save_writer(root / name, name) for name in ("mixtral", "minimax", "olmo", "opt", "mamba")}


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["mixtral", "minimax"])
def test_experts_are_counted_as_what_is_left_in_the_loaded_model(folders, name, kind):
    share, parts = stays_wide(build_on_meta(open_checkpoint(folders[name])))
    model = load_model(folders[name], NumberFormat(torch.float32, kind))
    narrow = sum(
        module.in_features * module.out_features for module in model.modules() if isinstance(module, QuantisedLinear)
    )
    wide = sum(tensor.numel() for key, tensor in model.named_parameters() if ".layers." in key and tensor.ndim > 1)
    assert parts[:2] == EXPERTS
    assert share == pytest.approx(wide / (wide + narrow))
    assert share > 0.3


@pytest.mark.parametrize("name", ["olmo", "opt"])
def test_nothing_is_said_of_models_whose_layers_are_linear(folders, name):
    plain = build_on_meta(open_checkpoint(folders[name]))
    assert stays_wide(plain) == (0.0, [])
    assert told_of_what_stays_wide(plain, "nf4") is None


def test_nothing_is_said_of_our_own(tmp_path):
    save_tiny_folder(tmp_path)
    assert told_of_what_stays_wide(build_on_meta(open_checkpoint(tmp_path)), "int8") is None


def test_convolutions_have_their_names(folders):
    _, parts = stays_wide(build_on_meta(open_checkpoint(folders["mamba"])))
    assert "mixer.conv1d.weight" in parts


@pytest.mark.parametrize("kind", ["float32", "nf4"])
def test_a_run_says_what_stays_wide(folders, kind, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{number}", "completion": "odd"}) + "\n" for number in range(30)))
    told = []

    class Ear(Silent):
        def say(self, text):
            told.append(text)

    values = {"model": {"name": str(folders["mixtral"]), "dtype": kind}, "data": {"train": str(rows)}}
    values |= {"runs": str(tmp_path / "runs"), "train": {"steps": 1, "threads": 1}, "eval": {"rows": 0}}
    microplane.train(knobs=build(RunKnobs, values), watch=Ear())
    lines = [text for text in told if "is for linear layers" in text]
    assert len(lines) == (kind == "nf4")
    assert all(kind in text and ", ".join(EXPERTS) in text for text in lines)
