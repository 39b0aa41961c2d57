"""The edges of a run: rows in memory, more of a finished run, a start from an adapter, and what its figures say."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import microplane
from microplane.config.knobs import DataKnobs, ModelKnobs, RunKnobs
from microplane.device import choose
from microplane.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    DataError,
    MicroplaneWarning,
    ModelError,
    TrainingError,
)
from microplane.methods import LoRA, make_method
from microplane.runs import train as train_module
from microplane.runs.continued import continued
from microplane.training.resume import checkpoints
from tests.adapters.test_leaving import adapter
from tests.tiny import SHALLOW, save_tiny_folder

ROWS = [{"prompt": f"say {i}", "completion": str(i)} for i in range(24)]
SETS = {"train.epochs": 1, "eval.rows": 4, "eval.max_new_tokens": 3, "train.threads": 1, "train.lr": 1e-2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edges")
    save_tiny_folder(folder / "model", **SHALLOW)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def run(place, tmp_path):
    sets = SETS | {"runs": str(tmp_path / "runs"), "name": "first"}
    return microplane.train(place / "model", place / "rows.jsonl", set=sets)


def test_rows_in_memory_are_trained_on_and_kept(place, tmp_path):
    seen = []
    done = microplane.train(place / "model", iter(ROWS), set=SETS | {"runs": tmp_path / "runs"}, callback=seen.append)
    assert [json.loads(line) for line in (done.folder / "rows.jsonl").read_text().splitlines()] == ROWS
    assert done.result["run"]["data"]["train"] == str(done.folder / "rows.jsonl")
    assert [record["step"] for record in seen if "loss" in record] == list(range(1, done.result["train"]["steps"] + 1))
    assert {"validation_loss", "best"} <= {key for record in seen for key in record}
    again = microplane.resume(done.folder)
    assert again.metrics == done.metrics


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("".join(json.dumps(row) + "\n" for row in ROWS), "stdin.jsonl"),
        (json.dumps(ROWS), "stdin.json"),
        ("prompt,completion\n" + "".join(f"say {i},{i}\n" for i in range(24)), "stdin.csv"),
    ],
)
def test_rows_of_standard_input(place, tmp_path, monkeypatch, content, name):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
    done = microplane.train(place / "model", "-", set=SETS | {"runs": tmp_path / "runs"})
    assert (done.folder / name).read_text() == content
    assert done.result["data"]["train_rows"] + done.result["data"]["validation_rows"] == 24


def test_what_is_no_row_is_refused_and_leaves_nothing(place, tmp_path):
    where = {"runs": tmp_path / "runs"}
    with pytest.raises(DataError, match="row 2 is a str: rows are mappings"):
        microplane.train(place / "model", [ROWS[0], "text"], set=where)
    with pytest.raises(DataError, match="row 1 cannot be written as JSON"):
        microplane.train(place / "model", [{"prompt": "a", "completion": {1, 2}}], set=where)
    with pytest.raises(DataError):
        microplane.train(place / "model", [{"nothing": "known"}], set=where)
    assert not (tmp_path / "runs").exists()


LAYERS = torch.nn.Sequential(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: microplane.train(5),
        lambda: microplane.train("m", 5),
        lambda: microplane.train("m", {"a": 1}),
        lambda: microplane.train("m", "d", set=["a"]),
        lambda: microplane.train("m", "d", method=5),
        lambda: microplane.train("m", "d", callback=5),
        lambda: microplane.train(knobs={"a": 1}),
        lambda: microplane.resume(5),
        lambda: microplane.evaluate(5, "d"),
        lambda: microplane.evaluate("m"),
        lambda: microplane.load(5),
        lambda: microplane.load(None),
        lambda: microplane.load("m", dtype="float99"),
        lambda: microplane.attach(None),
        lambda: microplane.attach(torch.nn.Linear(2, 2), 5),
        lambda: microplane.attach_saved(torch.nn.Linear(2, 2), 5),
        lambda: microplane.merge(5, "x"),
        lambda: microplane.merge("m", "x", "bfloat16"),
        *(lambda to=to: microplane.export("m", "x", to=to) for to in (5, [], {})),
        *(lambda wanted=wanted: microplane.compare("m", "d", methods=wanted) for wanted in (5, [5], b"lora")),
        *(lambda given=given: microplane.plan(**given) for given in ({"model": 5}, {"model": "m", "data": 5})),
        *(lambda memory=memory: microplane.plan("m", memory=memory) for memory in ("8", 0, -1, 1.5)),
        lambda: microplane.plan("m", set=["a"]),
        *(lambda targets=targets: microplane.attach(LAYERS, "lora", targets) for targets in (5, b"0", Path("0"), [5])),
        *(lambda name=name: choose(name) for name in (5, "", "gpu", "cuda:x", "cuda:99", "cpu:-2", None)),
        *(lambda watch=watch: microplane.train("m", "d", watch=watch) for watch in (5, print, "x")),
    ],
)
def test_wrong_arguments_are_told_as_such(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [5, None, "a text", b"a", Path("a"), [5], [None], [["a"]], [["a", 5]], ["a", ("b",)]])
def test_what_is_no_list_of_texts_is_refused_not_read_as_letters(place, given):
    asked = microplane.load(place / "model")
    for ask in (asked.embed, asked.classify):
        with pytest.raises(ConfigError, match="texts must be a list of texts, or of pairs of texts"):
            ask(given)
    if given != ["a", ("b",)]:
        with pytest.raises(ConfigError, match=r"prompts? must be a"):
            asked.answers(given)
    if given != "a text":
        with pytest.raises(ConfigError, match="prompt must be a text"):
            asked.prompt(given)


def test_the_package_tells_what_it_has():
    assert {"train", "evaluate", "load", "resume", "merge", "__version__"} <= set(dir(microplane))
    assert microplane.__version__[0].isdigit() or microplane.__version__ == "not installed"


def test_evaluating_a_run_gives_its_own_figures(place, run):
    held = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    several = run.load().generate(["say 1", "say 2"], max_new_tokens=2)
    assert several == [run.load().generate(text, max_new_tokens=2) for text in ("say 1", "say 2")]
    figures = microplane.evaluate(run.folder, held, set={"eval.rows": 0})["scores"]
    assert math.isfinite(figures["loss"])


@pytest.mark.parametrize("method", ["lora", "full", "norms"])
def test_to_the_last_digit(place, tmp_path, method):
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:9]))
    sets = SETS | {"runs": tmp_path / "runs", "data.test": test, "model.dtype": "bfloat16", "train.lr": 1e-3}
    done = microplane.train(place / "model", place / "rows.jsonl", method=method, set=sets)
    again = microplane.evaluate(done.folder, test, set={"eval.rows": 4, "eval.max_new_tokens": 3})
    assert again["scores"] == done.metrics["after"]


def test_a_finished_run_is_extended(run):
    steps = run.result["train"]["steps"]
    assert len(checkpoints(run.folder / "resume")) == 1  # the rest was of no more use
    said = []
    watch = SimpleNamespace(say=said.append, progress=lambda what: lambda done, of: None, record=lambda record: None)
    more = microplane.resume(run.folder, watch, set={"train.epochs": 3})
    assert more.result["train"]["steps"] == 3 * steps
    assert "goes on with another train.epochs: 1.0 then, 3.0 now" in said
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 3 * steps + 1))
    assert more.result["seconds"] > run.result["seconds"]


def test_fewer_steps_than_were_made_are_refused_and_nothing_left_is_said(run):
    before, steps = (run.folder / "run.yaml").read_text(), run.result["train"]["steps"]
    for fewer in ({"train.steps": steps - 1}, {"train.epochs": 0.5}):
        with pytest.raises(CheckpointError, match=rf"has made {steps} steps .* asked for \d+ in all .* not fewer"):
            microplane.resume(run.folder, set=fewer)
    assert (run.folder / "run.yaml").read_text() == before
    with pytest.warns(MicroplaneWarning, match=f"nothing is left to train: all {steps} steps were made"):
        microplane.resume(run.folder, set={"train.steps": steps})


def test_with_other_threads_it_says_that_bits_differ(run, threads_in_name):
    said = []
    watch = SimpleNamespace(say=said.append, progress=lambda what: lambda done, of: None, record=lambda record: None)
    microplane.resume(run.folder, watch, set={"train.threads": 2, "train.epochs": 2})
    assert "goes on with another threads: 1 then, 2 now" in said
    assert any("the same to rounding" in line for line in said)


def test_what_would_make_another_run_is_refused(run):
    before = (run.folder / "run.yaml").read_text()
    with pytest.raises(ConfigError, match=r"train.lr cannot be changed in a run that goes on .* --from"):
        microplane.resume(run.folder, set={"train.lr": 1})
    with pytest.raises(ConfigError, match=r"method.rank cannot .* Begin a new run: microplane train MODEL DATA --set"):
        microplane.resume(run.folder, set={"method.rank": 3})
    for name, told in (
        ("learning_rate", "That is 'train.lr' here"),
        ("train.epoch", "train.epochs"),
        ("foo", "no such"),
    ):
        with pytest.raises(ConfigError, match=told):
            microplane.resume(run.folder, set={name: 1})
    assert (run.folder / "run.yaml").read_text() == before


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_starts_from_the_adapter_of_another(place, tmp_path, method):
    sets = SETS | {"runs": tmp_path / "runs"}
    first = microplane.train(place / "model", place / "rows.jsonl", method=method, set=sets)
    second = microplane.train(data=place / "rows.jsonl", set=sets | {"model.adapter": first.folder, "name": "second"})
    assert second.result["method"]["name"] == method
    began = json.loads((second.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert began["validation_loss"] == pytest.approx(first.result["train"]["validation_loss"], rel=1e-4)
    again = microplane.train(knobs=None, data=place / "rows.jsonl", set=sets | {"model.adapter": second.folder})
    assert again.result["status"] == "success"


def test_a_run_from_an_adapter_has_its_method(place, run):
    for more in ({"method.name": "dora"}, {"method.rank": 3}):
        with pytest.raises(ConfigError, match="has its method: method"):
            microplane.train(data=place / "rows.jsonl", set={"model.adapter": run.folder, **more})
    with pytest.raises(AdapterError, match="is not to be had"):
        microplane.train("elsewhere", place / "rows.jsonl", set={"model.adapter": run.folder})


@pytest.mark.parametrize(
    ("section", "name", "told"),
    [
        ("model", "revision", "v2"), ("model", "dtype", "bfloat16"), ("data", "template", "plain"),
        ("data", "system", "Be brief."), ("data", "unicode", "nfd"), ("data", "segment", "vi"),
        ("data", "date", "1 January 2026"), ("data", "source_language", "eng_Latn"),
        ("data", "target_language", "fra_Latn"),
    ],
)  # fmt: skip
def test_a_run_from_an_adapter_is_asked_and_opened_as_that_was(place, tmp_path, monkeypatch, section, name, told):
    monkeypatch.setattr("microplane.runs.continued.base_of", lambda *given, **named: place / "model")
    about = {"base_dtype" if name == "dtype" else name: told}
    folder = adapter(place / "model", tmp_path / "first", "lora", **about)
    config = continued(RunKnobs(model=ModelKnobs(adapter=str(folder)), data=DataKnobs(train="rows.jsonl")))
    assert getattr(getattr(config, section), name) == told


@pytest.mark.parametrize("broken", ["saved = trained", "merged = unmerged"])
def test_what_was_saved_or_merged_otherwise_fails_its_check(place, tmp_path, monkeypatch, broken):
    def changed(model: torch.nn.Module) -> torch.nn.Module:
        next(p for p in model.parameters() if p.dim() == 2).data.mul_(1.5)
        return model

    if broken == "saved = trained":
        reopen = train_module.reopen
        monkeypatch.setattr(train_module, "reopen", lambda *given: changed(reopen(*given)))
    else:
        merge = LoRA.merge
        monkeypatch.setattr(LoRA, "merge", lambda self, model: (merge(self, model), changed(model))[0])
    sets = SETS | {"train.epochs": None, "train.steps": 1, "runs": str(tmp_path / "runs")}
    run = microplane.train(place / "model", place / "rows.jsonl", set=sets)
    failed = [check["name"] for check in run.result["checks"] if check["passed"] is False]
    assert [name for name in failed if name != "validation improved"] == [broken]


@pytest.mark.parametrize("method", ["prompt", "prefix", "lora"])
def test_an_evaluation_leaves_room_for_the_vectors_of_a_prompt(place, tmp_path, monkeypatch, method):
    class SeenError(Exception):
        pass

    def within(data: DataKnobs, context: int, taken: int, *more: object) -> DataKnobs:
        raise SeenError(taken)

    folder = adapter(place / "model", tmp_path / "first", method)
    monkeypatch.setattr("microplane.runs.evaluate.within_context", within)
    with pytest.raises(SeenError) as seen:
        microplane.evaluate(folder, place / "rows.jsonl")
    assert seen.value.args == (make_method(method).num_virtual_tokens,)
    assert (seen.value.args[0] > 0) is (method == "prompt")


def test_time_and_memory_are_of_the_whole_run(run):
    assert run.result["seconds"] > run.result["train"]["seconds"]
    assert run.result["peak_memory_bytes"] >= run.result["train"]["peak_memory_bytes"]
    assert run.result["metrics"]["lower_is_better"] == ["loss", "perplexity"]


def test_samples_hold_the_whole_prompt_and_failures_come_first(place, tmp_path, monkeypatch):
    measure = train_module.measure

    def only_the_first_right(*given):
        found = measure(*given)
        return found | {"texts": [found["targets"][0], *["wrong"] * (len(found["texts"]) - 1)]}

    monkeypatch.setattr(train_module, "measure", only_the_first_right)
    done = microplane.train(place / "model", place / "rows.jsonl", set=SETS | {"runs": tmp_path / "runs"})
    samples = done.result["samples"]
    assert all(sample["prompt"].strip().startswith("say ") for sample in samples)
    right = [sample["after"].strip() == sample["target"].strip() for sample in samples]
    assert right == [False] * (len(samples) - 1) + [True]
    assert len(samples) > 1


def test_weights_that_are_not_numbers_are_refused_everywhere(place, run, tmp_path):
    broken = tmp_path / "broken"
    save_tiny_folder(broken)
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name)
    weights[name].flatten()[3] = math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    for ask in (lambda: microplane.load(broken), lambda: microplane.evaluate(broken, place / "rows.jsonl")):
        with pytest.raises(ModelError, match=r"the tensor .*layers\.1.* holds NaN or infinity"):
            ask()
    with pytest.raises(TrainingError, match=r"its tensor .*layers\.1.* holds NaN or infinity"):
        microplane.train(broken, place / "rows.jsonl", set=SETS | {"runs": tmp_path / "runs"})
    file = run.folder / "adapter" / "adapter_model.safetensors"
    adapter = load_file(file)
    next(iter(adapter.values())).flatten()[0] = math.inf
    save_file(adapter, file, {"format": "pt"})
    with pytest.raises(AdapterError, match="hold NaN or infinity"):
        microplane.load(run.folder)


def test_more_threads_than_this_machine_can_run_are_refused(place, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.threads = 100000: this process may run on \d+ processor"):
        microplane.train(
            place / "model", place / "rows.jsonl", set={"runs": tmp_path / "runs", "train.threads": 100_000}
        )
    assert not (tmp_path / "runs").exists()


def spoilt(folder, part, value):
    """A tiny model with one number of a tensor replaced."""
    save_tiny_folder(folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if part in name)
    weights[name].flatten()[3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_quantised_weight_with_an_infinite_scale_is_refused(kind, value, tmp_path):
    with pytest.raises(ModelError, match=r"the tensor layers\.1\.mlp\.down.* holds NaN or infinity"):
        microplane.load(spoilt(tmp_path / "model", "layers.1.mlp.down_proj", value), dtype=kind)


def test_numbers_whose_sums_overflow_are_no_measurement(place, tmp_path):
    broken = spoilt(tmp_path / "model", "layers.1.mlp.down_proj", 3e38)
    with pytest.raises(TrainingError, match="its weights are numbers, but sums overflow"):
        microplane.evaluate(broken, place / "rows.jsonl", set={"eval.rows": 0})
