"""The whole job on architectures that are loaded through transformers."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import microplane
from microplane.adapters.convert import convert
from microplane.adapters.merge import merge
from microplane.config.build import build
from microplane.config.knobs import RunKnobs
from microplane.data.progress import Silent
from microplane.errors import ConfigError
from microplane.methods.adapted_linear import AdaptedLinear, adapted_layers
from microplane.runs.evaluate import measure_file
from microplane.training.resume import checkpoints
from tests.cases import some
from tests.foreign.folders import CAUSAL, save_causal, save_plbart

SETS = {
    "train.steps": 12,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.lr": 1e-2,
    "train.eval_every": 4,
    "eval.rows": 1,
    "eval.max_new_tokens": 2,
    "model.dtype": "float32",
    "data.template": "plain",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign-runs")
    for name in CAUSAL:
        save_causal(folder / name, name)
    save_plbart(folder / "plbart")
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(7)] * 6
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(place, model, method="lora", **sets):
    sets = SETS | {"runs": str(place / "runs"), "name": f"{model}-{len(list(place.glob('runs/*')))}"} | sets
    sets |= {} if method != "full" else {"train.lr": 3e-3}
    return microplane.train(str(place / model), str(place / "rows.jsonl"), method=method, set=sets)


def check(done):
    assert done.result["status"] == "success"
    sound = [found for found in done.result["checks"] if found["name"] != "validation improved"]  # of random weights
    assert all(found["passed"] in (True, None) for found in sound), sound
    assert done.result["checks"][1]["value"] == 0.0
    assert done.metrics["after"]["loss"] < done.metrics["before"]["loss"]


def tensors(done):
    [file] = [path for path in (done.folder / "adapter").iterdir() if path.suffix == ".safetensors"]
    return file.read_bytes()


@pytest.mark.parametrize(
    ("model", "method"),
    some(
        [*((model, "lora") for model in (*CAUSAL, "plbart")), ("openai-gpt", "full"), ("plbart", "full")],
        [("openai-gpt", "lora"), ("plbart", "lora"), ("openai-gpt", "full")],
    ),
)
def test_it_learns_resumes_to_the_bit_and_is_opened_again(place, model, method):
    done = run(place, model, method)
    check(done)
    before, metrics = tensors(done), (done.folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(checkpoints(done.folder / "resume")[-1])  # as if it had been killed behind the one before
    again = microplane.resume(done.folder)
    assert tensors(again) == before
    assert (again.folder / "metrics.jsonl").read_bytes() == metrics
    assert isinstance(again.load().generate("say aa", max_new_tokens=3), str)
    assert (done.folder / "report.html").stat().st_size > 10_000


METHODS = [
    {"name": "dora", "rank": 4, "start": "pissa"},
    {"name": "lora", "rank": 4, "start": "eva"},
    {"name": "lora", "rank": "auto", "max_rank": 4},
    {"name": "ia3", "targets": ["c_attn"], "feedforward": ["mlp.c_proj"]},
    {"name": "vera", "rank": 8},
    {"name": "adalora", "rank": 1, "initial_rank": 2, "interval": 2},
    {"name": "scalora", "rank": 2, "interval": 2},
    {"name": "nb-lora", "rank": 2},
    {"name": "qlora", "rank": 4},
]


COMPARED = ("ia3", "vera")  # with peft: test_gpt2_conv1d.py


@pytest.mark.parametrize(
    "method",
    some(METHODS, [method for method in METHODS if method["name"] not in COMPARED]),
    ids=lambda method: method["name"],
)
def test_every_method_on_layers_stored_the_other_way_round(place, method):
    sets = {f"method.{name}": value for name, value in method.items()}
    if method["name"] == "qlora":
        sets["model.dtype"] = "auto"
    done = run(place, "openai-gpt", None, **sets)
    check(done)
    assert done.load().generate("say aa", max_new_tokens=2) is not None


def test_full_with_products_in_bfloat16(place):
    check(run(place, "openai-gpt", "full", **{"model.dtype": "bfloat16"}))


def test_it_says_that_it_is_slower(place):
    told = []

    class Ear(Silent):
        def say(self, text):
            told.append(text)

    values = {"model": {"name": str(place / "opt"), "dtype": "float32"}, "data": {"train": str(place / "rows.jsonl")}}
    values |= {"runs": str(place / "runs"), "train": {"steps": 1, "threads": 1}, "eval": {"rows": 0}}
    microplane.train(knobs=build(RunKnobs, values), watch=Ear())
    assert "OPTForCausalLM has no implementation here: loaded through transformers, slower" in told
    assert "data.max_length lowered from 1024 to 64, the context of this model" in told


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_a_head_that_has_a_bias_trains_with_it(place, method):
    done = run(place, "gptj", method)
    check(done)
    base, tuned = (microplane.load(place / "gptj"), microplane.load(done.folder, "float32"))
    assert not torch.equal(base.model.net.lm_head.bias, tuned.model.net.lm_head.bias)


def test_peft_opens_the_adapter_and_the_merged_model_needs_nothing_of_ours(place, tmp_path):
    done = run(place, "openai-gpt")
    ids = torch.randint(0, 259, (1, 9), generator=torch.Generator().manual_seed(0))
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(place / "openai-gpt"), done.folder / "adapter"
    )
    wanted = theirs(ids).logits
    with torch.no_grad():
        found = microplane.load(done.folder, "float32").model.net(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    merged = merge(done.folder, tmp_path / "merged")
    assert merged.difference < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(plain(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    opened = microplane.load(tmp_path / "theirs", "float32")
    with torch.no_grad():
        torch.testing.assert_close(opened.model.net(ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_evaluation_and_conversion(place, tmp_path):
    done = run(place, "gptj", "nb-lora", **{"method.rank": 2})
    values = {"model": {"name": str(done.folder)}, "data": {"train": str(place / "rows.jsonl")}, "eval": {"rows": 2}}
    assert 0 < measure_file(build(RunKnobs, values))["scores"]["loss"] < 6
    made = convert(done.folder, tmp_path / "lora")
    assert made.error < 1e-5
    assert made.difference < 1e-3
    full = convert(run(place, "openai-gpt", "full").folder, tmp_path / "full", rank=4)
    assert 0 < full.error < 1
    assert full.lost > 0


def test_what_cannot_be_is_refused(place):
    with pytest.raises(ConfigError, match="train.recompute = blocks: this model has none that are known here"):
        run(place, "openai-gpt", **{"train.recompute": "blocks"})
    with pytest.raises(ConfigError, match="train.recompute = cheap: this model has none"):
        run(place, "gptj", **{"train.recompute": "cheap"})
    with pytest.raises(ConfigError, match="this start needs the weights as they were before they were quantised"):
        run(place, "openai-gpt", "qlora", **{"method.start": "loftq", "model.dtype": "auto"})
    with pytest.raises(ConfigError, match="Did you mean 'c_attn'?"):
        run(place, "openai-gpt", **{"method.targets": ["c_atn"]})
    done = run(place, "openai-gpt", **{"method.targets": ["h.0.*.c_attn"], "train.steps": 2})
    [name] = [name for name, _ in adapted_layers(done.load().model, AdaptedLinear)]
    assert name == "net.transformer.h.0.attn.c_attn"


@pytest.mark.parametrize("method", ["bottleneck", "prompt", "prefix", "last-n"])
def test_what_only_our_models_have_is_refused_before_anything_is_measured(place, method):
    told = []

    class Ear(Silent):
        def say(self, text):
            told.append(text)

    values = {"model": {"name": str(place / "openai-gpt")}, "data": {"train": str(place / "rows.jsonl")}}
    values |= {"runs": str(place / "refused"), "method": {"name": method}}
    with pytest.raises(ConfigError, match=f"method.name = '{method}' .*Microplane's own"):
        microplane.train(knobs=build(RunKnobs, values), watch=Ear())
    assert told
    assert not any("untouched model" in line for line in told)
