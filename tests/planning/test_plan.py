"""`microplane plan`: what follows from shapes is exact, what is tried is near, and large models need no memory."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

import microplane
from microplane.cli.app import app
from microplane.cli.plan import memory_of
from microplane.config.knobs import ModelKnobs
from microplane.errors import ConfigError, ModelError
from microplane.methods import make_method
from microplane.methods.base_format import base_format
from microplane.methods.method import attach_method
from microplane.models.files.load import load_model
from microplane.nn.quantised import bytes_held
from microplane.planning import plan as planning
from tests.labels import encoder_folder
from tests.tiny import LLAMA, save_tiny_folder

SETS = {"train.threads": 1, "model.dtype": "float32"}
SHAPE = LLAMA | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "max_position_embeddings": 512}


def described(folder: Path, **changes) -> Path:
    """A folder with a config.json alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE | changes))
    return folder


def test_what_follows_from_shapes_is_exact(tmp_path):
    folder = save_tiny_folder(tmp_path / "model")
    plan = microplane.plan(folder, methods="lora,full,bitfit,paca", set=SETS)
    found = {one.method: one for one in plan.methods}
    for name in ("lora", "full"):
        method, model = make_method({"name": name}), load_model(folder)
        attach_method(method, model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert found[name].trainable == trained
        assert found[name].gradients == 4 * trained
        assert found[name].optimizer == 8 * trained
    assert found["full"].adapter == 0
    assert found["lora"].adapter == 4 * found["lora"].trainable
    assert found["full"].base == bytes_held(load_model(folder))
    assert "biases" in found["bitfit"].refused
    assert all(one.fits for one in plan.methods if not one.refused)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_has_its_own_size(tmp_path, kind):
    folder = save_tiny_folder(tmp_path / "model")
    (one,) = microplane.plan(folder, methods="lora", set=SETS | {"model.dtype": kind}).methods
    form = base_format(ModelKnobs(dtype=kind), make_method({"name": "lora"}))
    assert one.base == bytes_held(load_model(folder, form))


def test_a_model_far_larger_than_this_machine(tmp_path):
    """175 billion weights, of which no more than a narrow block is made."""
    big = {"hidden_size": 12288, "intermediate_size": 49152, "num_hidden_layers": 96, "vocab_size": 50257}
    folder = described(
        tmp_path / "big", **big, num_attention_heads=96, num_key_value_heads=96, tie_word_embeddings=False
    )
    before = psutil.Process().memory_info().rss
    plan = microplane.plan(folder, methods="lora,full", memory=80 * 10**9, set=SETS | {"model.dtype": "bfloat16"})
    assert psutil.Process().memory_info().rss - before < 10**9
    assert plan.parameters > 170e9
    lora, full = plan.methods
    assert lora.fits is False
    assert "model.dtype=nf4" in lora.advice
    assert "lora" in full.advice
    assert full.total > 10 * lora.gradients


def test_recomputing_blocks_and_data_change_it(tmp_path):
    folder = save_tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"say {n} " + "x" * 50, "completion": "y" * 20} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = microplane.plan(folder, tmp_path / "rows.jsonl", methods="lora", set=SETS)
    less = microplane.plan(folder, tmp_path / "rows.jsonl", methods="lora", set=SETS | {"train.recompute": "blocks"})
    assert less.methods[0].activations < plain.methods[0].activations
    assert 70 < plain.row < 128
    assert plain.tokens == pytest.approx(36 * plain.row, rel=0.2)
    assert plain.methods[0].seconds == pytest.approx(plain.methods[0].seconds_per_1000_tokens * plain.tokens / 1000)
    longer = microplane.plan(folder, tmp_path / "rows.jsonl", methods="lora", set=SETS | {"train.epochs": 3})
    assert longer.tokens == 3 * plain.tokens


def test_an_encoder_learns_labels(tmp_path):
    plan = microplane.plan(encoder_folder(tmp_path / "model"), methods="head-only,lora", set=SETS)
    head, lora = plan.methods
    assert not head.refused
    assert head.trainable < lora.trainable
    assert head.seconds_per_1000_tokens < lora.seconds_per_1000_tokens / 10  # what is frozen is computed once


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("1.5 TB", 1_500_000_000_000), ("2GiB", 2**31), ("this", None)]
)
def test_sizes_of_memory(text, size):
    assert memory_of(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "0GB", "much"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="expected a size"):
        memory_of(text)


def test_the_command(tmp_path):
    arguments = ["plan", str(save_tiny_folder(tmp_path / "model")), "--methods", "lora,bitfit", "--machine", "24GB"]
    arguments += ["--set", "train.threads=1", "--set", "model.dtype=float32"]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "24 GB of memory" in told
    assert "bitfit: method.name" in told
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--quiet"], catch_exceptions=False).stdout)
    parts = ("process", "base", "adapter", "gradients", "optimizer", "activations")
    assert found["methods"][0]["total"] == sum(found["methods"][0][part] for part in parts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_just_fits_fits_and_else_it_is_said_what_nf4_would_take(dtype):
    method, form = make_method({"name": "lora"}), base_format(ModelKnobs(dtype=dtype), make_method({"name": "lora"}))
    one = planning.MethodPlan("lora", base=100 * 10**6 * form.stored.itemsize, activations=10)

    def judged(memory):
        return planning._judged(one, method, form, planning.Plan("model", 1, memory, 1, 1, None))

    assert judged(one.total).fits
    less = judged(one.total - 10**6)
    assert less.fits is False
    assert less.advice == "1 MB too much: model.dtype=nf4, which holds the base in 50 MB"


def test_memory_that_this_process_has_is_there_too(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "free_memory", lambda: 10**6)
    folder = save_tiny_folder(tmp_path / "model")
    assert microplane.plan(folder, methods="lora", set=SETS).memory > 100 * 10**6
    assert microplane.plan(folder, methods="lora", set=SETS, memory=5).memory == 5


def test_what_is_no_model_and_no_method_is_refused(tmp_path):
    with pytest.raises(ModelError):
        microplane.plan(tmp_path, set=SETS)
    with pytest.raises(ConfigError, match="no method 'lorra'"):
        microplane.plan(save_tiny_folder(tmp_path / "model"), methods="lorra", set=SETS)
