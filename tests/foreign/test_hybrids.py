"""Decoders whose layers carry states along, alone or beside attention: batches, one step of LoRA, a merged folder."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig, RwkvForCausalLM

import microplane
from microplane.adapters.merge import merge
from microplane.config.build import build
from microplane.config.knobs import RunKnobs
from microplane.data.progress import Silent
from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers
from microplane.methods.method import attach_method
from microplane.models.external.writers import TransformersWriter
from microplane.models.files.load import load_model, save_model
from microplane.nn.rows import Rows
from tests.cases import some
from tests.foreign.writer_folders import HYBRIDS, save_writer

ROWS = [[5, 9, 200, 31], [7, 8], [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("hybrids")
    for name in HYBRIDS:
        save_writer(root / name, name)
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(28)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


class Ear(Silent):
    def __init__(self):
        self.told = []

    def say(self, text):
        self.told.append(text)


@pytest.mark.parametrize("name", HYBRIDS)
def test_three_rows_in_a_batch_are_each_row_alone(place, name):
    model, peer = load_model(place / name), AutoModelForCausalLM.from_pretrained(place / name).eval()
    found = model.logits(model(Rows.of(ROWS)))
    with torch.no_grad():
        wanted = torch.cat([peer(torch.tensor([row]), use_cache=False).logits[0] for row in ROWS])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", some(HYBRIDS, list(HYBRIDS)[::3]))
def test_one_step_moves_what_it_should_and_the_merged_folder_opens(place, name, tmp_path):
    values = {"model": {"name": str(place / name), "dtype": "float32"}, "data": {"train": str(place / "rows.jsonl")}}
    values["data"] |= {"template": "plain"}
    values |= {"runs": str(place / "runs"), "name": name, "method": {"name": "lora", "rank": 2}}
    values |= {"train": {"steps": 4, "threads": 1, "batch_size": 4, "lr": 1e-2}, "eval": {"rows": 0}}
    done = microplane.train(knobs=build(RunKnobs, values), watch=(ear := Ear()))
    moved = done.result["checks"][0]
    assert moved["name"] == "every trainable tensor moved"
    assert moved["passed"], moved
    model = microplane.load(done.folder, "float32").model
    names = [path for path, _ in adapted_layers(model, AdaptedLinear)]
    assert names
    [line] = [told for told in ear.told if told.startswith("adapts")]
    assert f"{len(names)} linear layers" in line
    assert all(name.rsplit(".", 1)[-1] in line for name in names)
    merged = merge(done.folder, tmp_path / "merged")
    assert merged.difference < 1e-4
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        wanted = torch.cat([peer(torch.tensor([row]), use_cache=False).logits[0] for row in ROWS])
        found = model.logits(model(Rows.of(ROWS)))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_what_the_model_reads_itself_is_not_adapted(place):
    model = load_model(place / "mamba")
    told = model.__dict__["_microplane_module_map"]
    left = {name.rsplit(".", 1)[-1] for name in told.not_adaptable} - {"lm_head"}  # which is the embedding
    assert left == {"x_proj", "dt_proj", "out_proj"}  # of which training hands over the weights alone
    assert {name.rsplit(".", 1)[-1] for name in told.linears} == {"in_proj"}
    with pytest.raises(ConfigError, match="dt_proj has a weight that the model reads itself"):
        attach_method(make_method({"name": "lora", "targets": ["dt_proj"]}), model)


def test_rwkv_keeps_its_weights_and_computes_as_in_training(place):
    fields = json.loads((place / "rwkv" / "config.json").read_text()) | {"rescale_every": 1}
    model = TransformersWriter.from_hf(fields).init_weights(0)
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    peer = RwkvForCausalLM(RwkvConfig(**fields)).train()  # outside of training it divides weights in place
    peer.load_state_dict(before)
    for mode in (True, False):
        model.train(mode)
        found = model.logits(model(Rows.of(ROWS[:1])))
        torch.testing.assert_close(found, peer(torch.tensor(ROWS[:1])).logits[0], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())


def test_numbers_that_json_lacks_are_read_and_kept(place, tmp_path):
    model = load_model(place / "mamba2")
    assert model.net.config.time_step_limit[1] == float("inf")
    save_model(model, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.time_step_limit[1] == float("inf")
