"""`microplane plan`: what follows from shapes is exact, what is tried is near, and large models need no memory."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

import microplane
from microplane.cli.app import app
from microplane.cli.plan import memory_of
from microplane.config.build import assemble
from microplane.config.knobs import ModelKnobs
from microplane.data.progress import Silent
from microplane.errors import ConfigError, ModelError
from microplane.forecast.memory import Forecast, exact_bytes
from microplane.methods import make_method
from microplane.methods.base_format import base_format
from microplane.methods.method import attach_method
from microplane.models.files.load import load_model
from microplane.nn.quantised import bytes_held
from microplane.planning import plan as planning
from microplane.planning.fitting import advice
from microplane.report.words import size
from microplane.runs.method_search import stand_in
from microplane.runs.own_forecast import own_forecast
from microplane.runs.prepare import prepare
from tests.data.preparing.test_doubts import asked
from tests.labels import encoder_folder, reviews, scores, tags, write
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import LLAMA, T5_SMALL, save_tiny_folder

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
    assert "even with train.micro_tokens=256 and train.recompute=blocks" in lora.advice
    assert lora.advice.endswith("and model.dtype=nf4)")
    assert "a smaller model" in full.advice
    assert full.total > 10 * lora.gradients


def test_recomputing_blocks_and_data_change_it(tmp_path, monkeypatch):
    folder = save_tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"say {n} " + "x" * 50, "completion": "y" * 20} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = microplane.plan(folder, tmp_path / "rows.jsonl", methods="lora", set=SETS)
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys)  # of a process that has recomputed before
    less = microplane.plan(folder, tmp_path / "rows.jsonl", methods="lora", set=SETS | {"train.recompute": "blocks"})
    assert less.methods[0].activations < plain.methods[0].activations
    assert 70 < plain.row < 128
    assert plain.tokens == pytest.approx(3 * 36 * plain.row, rel=0.2), "few rows are read three times"
    assert plain.methods[0].seconds == pytest.approx(plain.methods[0].seconds_per_1000_tokens * plain.tokens / 1000)
    longer = microplane.plan(folder, tmp_path / "rows.jsonl", methods="lora", set=SETS | {"train.epochs": 6})
    assert longer.tokens == 2 * plain.tokens


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


def exact(found) -> list[float]:
    return [found.trainable, found.base, found.adapter, found.gradients, found.optimizer, found.disk]


@pytest.mark.parametrize(
    ("model", "rows", "method", "knobs"),
    [
        ("decoder", asked(40), "lora", {"method.rank": 4}),
        ("decoder", asked(40), "prefix", {"method.length": 3, "train.batch_size": 2}),
        ("decoder", reviews(40), "full", {"data.task": "classification", "train.optimizer": "adafactor"}),
        ("encoder", reviews(40), "head-only", {"train.epochs": 3}),
        ("encoder", tags(40), "dora", {"method.rank": "auto", "data.max_length": 8}),
        ("encoder", scores(40), "lora", {"method.rank": "auto"}),
        ("pairs", [{"inputs": row["prompt"], "targets": row["completion"]} for row in asked(40)], "lora", {}),
    ],
)
def test_it_says_what_the_run_forecasts_of_itself(tmp_path, model, rows, method, knobs):
    folder = {"decoder": save_tiny_folder, "encoder": encoder_folder, "pairs": pair_folder}[model](tmp_path / "m")
    data = write(tmp_path / "rows.jsonl", rows)
    (found,) = (plan := microplane.plan(folder, data, methods=method, set=SETS | knobs)).methods
    config = assemble(given={"model.name": str(folder), "data.train": str(data), "method.name": method} | SETS | knobs)
    config = stand_in(config)
    prepared = prepare(config, make_method(config.method), Silent())
    own = own_forecast(prepared).parts
    assert exact(found) == [own[name] for name in ("trainable", "base", "adapter", "gradients", "optimizer", "disk")]
    assert (plan.row, plan.at_once) == (own["row"], own["tokens"])
    assert plan.tokens == round(own["step"] * prepared.batch_plan.run_steps(prepared.config.train))


def test_figures_do_not_depend_on_what_was_planned_before(tmp_path):
    folder = save_tiny_folder(tmp_path / "model")
    one, two = (microplane.plan(folder, methods=names, set=SETS) for names in ("lora,full", "full,lora"))
    for plan in (one, two):
        assert len({found.process for found in plan.methods}) == 1
    assert {(x.method, x.activations) for x in one.methods} == {(x.method, x.activations) for x in two.methods}


@pytest.mark.parametrize(
    ("methods", "knobs", "message"),
    [
        ("lora,full", {"method.rnk": 4}, "none of the methods lora, full has this knob"),
        ("full", {"method.rank": 4}, "none of the methods full has this knob"),
        ("lora", {"method.name": "full"}, "use --methods"),
    ],
)
def test_knobs_that_no_method_has_are_refused(tmp_path, methods, knobs, message):
    with pytest.raises(ConfigError, match=message):
        microplane.plan(save_tiny_folder(tmp_path / "model"), methods=methods, set=SETS | knobs)


def test_methods_can_be_planned_for_on_short_contexts_and_few_blocks(tmp_path):
    found = microplane.plan(encoder_folder(tmp_path / "encoder"), methods="prompt,prefix,last-n", set=SETS)
    assert [one.refused for one in found.methods] == [""] * 3
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "config.json").write_text(json.dumps(T5_SMALL))
    assert microplane.plan(pairs, methods="last-n", set=SETS).methods[0].refused == ""


def test_rows_may_come_on_standard_input_and_the_model_have_no_weights(tmp_path):
    folder = save_tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    arguments = ["plan", str(folder), "-", "--methods", "lora", "--json", "--quiet", "--set", "train.threads=1"]
    given = "".join(json.dumps(row) + "\n" for row in asked(40))
    found = CliRunner().invoke(app, arguments, input=given, catch_exceptions=False)
    assert json.loads(found.stdout)["tokens"] > 0


def knobs_of(way: str) -> dict[str, str]:
    return dict(part.split("=") for part in way.split(" (")[0].split(" and "))


@pytest.fixture
def process(monkeypatch):
    """One that takes the same each time."""
    monkeypatch.setattr(planning.Process, "now", classmethod(lambda cls: cls(10**8, True)))


def test_what_just_fits_fits(tmp_path, process):
    folder = save_tiny_folder(tmp_path / "model")
    (whole,) = microplane.plan(folder, methods="lora", set=SETS).methods
    for more, fits in ((0, True), (-1, False)):
        (found,) = microplane.plan(folder, methods="lora", set=SETS, memory=whole.total + more).methods
        assert found.fits is fits


@pytest.mark.parametrize(("method", "share"), [("lora", 0.6), ("lora", 0.3), ("full", 0.5)])
def test_what_is_advised_makes_it_fit(tmp_path, process, method, share):
    """Each way that is named, and none that is not enough."""
    folder = described(tmp_path / "m", num_hidden_layers=30, max_position_embeddings=512, intermediate_size=600)
    sets = SETS | {"train.batch_size": 16}
    (whole,) = microplane.plan(folder, methods=method, set=sets).methods
    memory = whole.process + int(share * (whole.total - whole.process))
    (found,) = microplane.plan(folder, methods=method, set=sets, memory=memory).methods
    own = [way for way in found.advice.split(": ", 1)[1].split("; or ") if not way.startswith("the method")]
    assert own
    for way in own:
        changed = {name: int(value) if value.isdigit() else value for name, value in knobs_of(way).items()}
        (then,) = microplane.plan(folder, methods=method, set=sets | changed, memory=memory).methods
        assert then.fits, way


def test_where_nothing_helps_that_is_said():
    def total(changes):
        return 100 - 10 * len(changes)

    ways = [{"a": 1}, {"b": 2}, {"b": 3}]
    assert advice(100, 95, ways, total, {}) == "5 bytes too much: a=1 (90 bytes); or b=2 (90 bytes)"
    assert advice(100, 85, ways, total, {"lora": 85}) == "15 bytes too much: the method lora (85 bytes)"
    assert advice(100, 80, ways, total, {"lora": 85}) == "20 bytes too much: a=1 and b=3 (80 bytes)"
    nothing = "50 bytes too much: a smaller model, or more memory"
    assert advice(100, 50, ways, total, {}) == f"{nothing} (at least 80 bytes even with a=1 and b=3)"
    assert advice(100, 50, [], total, {"lora": math.inf}) == nothing


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


@pytest.fixture
def weights_alone(process, monkeypatch):
    """Nothing but what weights, gradients and the optimizer take; no block is tried."""

    def forecast(shapes, at_once, knobs, process, *more, **named):
        return Forecast(0, process.size, exact_bytes(shapes, knobs), 0, 0, 0, 0, 0)

    monkeypatch.setattr(planning, "forecast", forecast)


def test_rows_are_prepared_once_for_each_method_whatever_is_tried(tmp_path, weights_alone, monkeypatch):
    """As are the shapes: of the largest models making them is most of the work."""
    folder, data = save_tiny_folder(tmp_path / "model"), write(tmp_path / "rows.jsonl", asked(40))
    prepared, made = [], []
    prepare_, meta_copy_ = planning.prepare, planning.meta_copy

    def prepare_noted(config, *how, **named):
        prepared.append(config.method["name"])
        return prepare_(config, *how, **named)

    monkeypatch.setattr(planning, "prepare", prepare_noted)
    monkeypatch.setattr(planning, "meta_copy", lambda model: made.append(model) or meta_copy_(model))
    sets = SETS | {"train.batch_size": 16}
    (whole,) = microplane.plan(folder, data, methods="full", set=sets).methods
    assert prepared == ["lora", "full"]
    prepared.clear()
    plan = microplane.plan(folder, data, methods="full,lora", set=sets, memory=whole.total - 1)
    assert "the method lora" in plan.methods[0].advice
    assert prepared == ["lora", "full", "qlora"]
    made.clear()
    microplane.plan(folder, methods="full", set=sets, memory=whole.total // 2)
    assert len(made) == 3  # lora, full and qlora


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize(("dtype", "told"), [("bfloat16", "qlora with model.dtype=auto"), ("auto", "qlora")])
def test_a_method_with_a_format_of_its_own_is_advised_where_another_is_set(tmp_path, weights_alone, dtype, told, data):
    wide = {"num_hidden_layers": 3, "intermediate_size": 600, "max_position_embeddings": 512}
    folder = save_tiny_folder(tmp_path / "m", **wide)
    rows = [write(tmp_path / "rows.jsonl", asked(40))] if data else []
    sets = SETS | {"model.dtype": dtype}
    (full,) = microplane.plan(folder, *rows, methods="full", set=sets).methods
    (own,) = microplane.plan(folder, *rows, methods="qlora", set=SETS | {"model.dtype": "auto"}).methods
    (found,) = microplane.plan(folder, *rows, methods="full", set=sets, memory=full.total - 1).methods
    assert f"the method {told} ({size(own.total)})" in found.advice


def test_what_a_run_would_refuse_is_refused_and_never_advised(tmp_path, weights_alone):
    folder = encoder_folder(tmp_path / "model")
    lora, head = microplane.plan(folder, methods="lora,head-only", set=SETS | {"train.recompute": "blocks"}).methods
    assert (lora.refused, "would change nothing" in head.refused) == ("", True)
    (found,) = microplane.plan(folder, methods="head-only", set=SETS, memory=10**8).methods
    assert "recompute" not in found.advice
    new = {"model.init": "random", "model.dtype": "float32"}
    (found,) = microplane.plan(described(tmp_path / "new"), methods="full", set=SETS | new, memory=10**8).methods
    assert "nf4" not in found.advice
    assert "qlora" not in found.advice


def test_knobs_that_suit_one_method_alone_can_be_planned_with(tmp_path):
    (found,) = microplane.plan(described(tmp_path / "m"), methods="full", set=SETS | {"train.layer_decay": 0.9}).methods
    assert not found.refused
