"""The stages of a run: what is read and measured once, and what a run leaves of itself in its process."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import microplane
from microplane.config.build import assemble
from microplane.config.knobs import TrainKnobs
from microplane.data.progress import Silent
from microplane.errors import ConfigError
from microplane.files import cache_dir
from microplane.models.files import load
from microplane.runs import train as train_module
from microplane.training.context import PeakMemory, run_context
from tests.cases import some
from tests.tiny import save_tiny_folder

SETS = {
    "train.steps": 6,
    "train.batch_size": 4,
    "train.eval_every": 3,
    "train.lr": 0.01,
    "eval.rows": 3,
    "eval.max_new_tokens": 3,
    "model.dtype": "float32",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    save_tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(48)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


SHORT = {"train__steps": 4, "train__eval_every": 4, "data__validation_rows": 2, "eval__rows": 2}


def train(place: Path, method: str = "lora", **sets: Any) -> train_module.Run:
    values = SETS | {"runs": str(place / "runs")} | {name.replace("__", "."): value for name, value in sets.items()}
    return microplane.train(str(place / "model"), str(place / "rows.jsonl"), method=method, set=values)


def counted(monkeypatch, owner, name: str) -> list[Any]:
    calls, original = [], getattr(owner, name)

    def call(*arguments, **named):
        calls.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize(
    "method", ["lora", "dora", "scalora", "nb-lora", "adalora", "ia3", "prefix", "bottleneck", "norms", "last-n"]
)
def test_the_base_is_read_once(place, monkeypatch, method):
    read = counted(monkeypatch, load, "_convert")
    done = train(place, method, **SHORT)
    assert len(read) == 1
    assert done.result["checks"][1] == {
        "name": "saved = trained",
        "passed": True,
        "value": 0.0,
        "detail": "largest logit difference on 4 stored rows; at most 0 passes",
    }


def test_of_a_quantised_base_the_weights_before_quantising_are_read_once_more(place, monkeypatch):
    """Merging goes into them, and they are not in memory."""
    opened, read = counted(monkeypatch, load, "_scan"), counted(monkeypatch, load, "_convert")
    done = train(place, "qlora", model__dtype="auto")
    assert (len(opened), len(read)) == (1, 2)
    assert [check["passed"] for check in done.result["checks"]] == [True, True, True, None, True]


def test_a_base_that_was_changed_behind_the_runs_back_is_not_what_saved_weights_are_compared_on(place, monkeypatch):
    """Whoever opens the adapter will put it on the base's files, not on what training has made of them in memory."""
    original = train_module.fit

    def spoiling(prepared, model, *more, **named):
        fitted = original(prepared, model, *more, **named)
        model.embed.weight.data.add_(0.1)  # which counts no version up
        return fitted

    monkeypatch.setattr(train_module, "fit", spoiling)
    read = counted(monkeypatch, load, "_convert")
    assert train(place).result["checks"][1]["value"] == 0.0
    assert len(read) == 1


def measured(monkeypatch) -> list[str]:
    whose: list[str] = []
    original = train_module.measure

    def measure(*arguments):
        whose.append(arguments[7])
        return original(*arguments)

    monkeypatch.setattr(train_module, "measure", measure)
    return whose


def test_the_untouched_model_is_measured_once_for_all_runs_on_the_same_rows(place, monkeypatch):
    whose = measured(monkeypatch)
    first = train(place)
    (file,) = (cache_dir() / "baseline").iterdir()
    os.utime(file, (1, 1))
    second = train(place, "ia3", train__seed=5)
    assert file.stat().st_mtime > 1  # used now, so it stays in the cache
    assert whose == ["untouched model", "tuned model", "tuned model"]
    assert first.metrics["before"] == second.metrics["before"]
    assert first.result["samples"][0]["before"] == second.result["samples"][0]["before"]


CHANGES = [
    {"eval__rows": 2},
    {"eval__max_new_tokens": 2},
    {"eval__metrics": ["exact_match"]},
    {"data__validation_share": 0.4},
    {"data__template": "plain", "data__system": "Answer."},
    {"model__dtype": "bfloat16"},
    {"model__dtype": "int8"},
    {"train__threads": 2},
]


@pytest.mark.parametrize("change", some(CHANGES, CHANGES[1:7:3]), ids=str)
def test_what_changes_its_figures_makes_it_measured_again(place, monkeypatch, change):
    train(place)
    whose = measured(monkeypatch)
    train(place, **change)
    assert whose == ["untouched model", "tuned model"]


def test_a_damaged_memory_of_the_untouched_model_is_made_again(place, monkeypatch):
    done = train(place, **SHORT)
    (file,) = (cache_dir() / "baseline").iterdir()
    before = json.loads(file.read_text())
    whose = measured(monkeypatch)
    for content in (b"{", b"{}", b"[]", b"\xff", b'{"scores": {"loss": NaN}}'):
        file.write_bytes(content)
        whose.clear()
        again = train(place, **SHORT)
        assert whose == ["untouched model", "tuned model"], content
        assert again.metrics == done.metrics, content
        after = json.loads(file.read_text())
        assert after.pop("seconds") > 0, content
        assert after == {name: told for name, told in before.items() if name != "seconds"}, content


def test_a_base_of_other_weights_is_measured_also_if_its_files_look_alike(place, monkeypatch):
    """Same names and sizes, same beginning and end of the file: which is all that a fingerprint of files looks at."""
    train(place)
    file = place / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(4)
    file.write_bytes(content)
    monkeypatch.setattr("microplane.runs.prepare.fingerprint", lambda path: "the same")
    whose = measured(monkeypatch)
    train(place)
    assert whose == ["untouched model", "tuned model"]


def test_a_base_of_another_configuration_is_measured_also_if_its_weights_are_the_same(place, monkeypatch):
    train(place)
    file = place / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.1}))
    whose = measured(monkeypatch)
    train(place)
    assert whose == ["untouched model", "tuned model"]


def test_a_run_that_fails_tells_the_size_of_what_it_had_saved(place):
    class Failing(Silent):
        def record(self, record: dict[str, Any]) -> None:
            if record["step"] == 4:
                raise ZeroDivisionError

    values = SETS | {"runs": str(place / "runs"), "name": "failing"}
    with pytest.raises(ZeroDivisionError):
        microplane.train(str(place / "model"), str(place / "rows.jsonl"), set=values, watch=Failing())
    folder = place / "runs" / "failing"
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["method"]["adapter_bytes"] == (folder / "adapter" / "adapter_model.safetensors").stat().st_size


def test_new_weights_are_not_quantised(place):
    with pytest.raises(ConfigError, match=r"model.init = random with a base in nf4"):
        train(place, "qlora", model__init="random", model__dtype="auto")


def test_a_run_leaves_threads_and_random_numbers_as_they_were(place, threads_in_name):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(place, train__threads=2)
    assert torch.get_num_threads() == 1
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(ZeroDivisionError), run_context(TrainKnobs(threads=2)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 1


def test_only_operations_that_give_the_same_bits_within_a_run(place, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def look(record):
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))

    sets = SETS | {"runs": str(place / "runs"), "train.deterministic": True, "eval.rows": 0}
    microplane.train(str(place / "model"), str(place / "rows.jsonl"), set=sets, callback=look)
    assert set(seen) == {(True, ":4096:8")}
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    told = r"train\.deterministic: torch has no deterministic form .* grid_sampler_2d_\S+ .* model\.device=cpu"
    lacks = "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set"
    with pytest.raises(ConfigError, match=told), run_context(TrainKnobs(deterministic=True)):
        raise RuntimeError(lacks)
    with pytest.raises(RuntimeError, match="no such shape"), run_context(TrainKnobs(deterministic=True)):
        raise RuntimeError("no such shape")


def test_peak_memory_is_counted_from_where_it_begins():
    big = torch.ones(64 << 20)  # 256 MB
    del big
    memory = PeakMemory()
    before = memory.bytes()
    big = torch.ones(32 << 20)  # 128 MB
    grown = memory.bytes() - before
    del big
    assert 0.9 * (128 << 20) < grown < 1.2 * (128 << 20) or not memory.counted_anew


RUNS = {  # each of another seed, method, number of threads and base
    "a": {"train.seed": 1, "train.threads": 1, "method.name": "lora", "method.dropout": 0.1},
    "b": {"train.seed": 2, "train.threads": 2, "method.name": "dora"},
    "c": {"train.seed": 3, "train.threads": 1, "method.name": "qlora", "model.dtype": "auto"},
}


def run_one(place: Path, name: str) -> dict[str, str]:
    given = SETS | RUNS[name] | {"model.name": str(place / "model"), "data.train": str(place / "rows.jsonl")}
    given |= {"runs": str(place / "runs"), "name": f"{name}-{os.getpid()}-{random.random()}"[:40]}
    done = microplane.train(knobs=assemble(given=given))
    files = ("metrics.jsonl", "adapter/adapter_model.safetensors")
    return {file: hashlib.sha256((done.folder / file).read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_runs_in_one_process_give_the_bits_of_runs_in_processes_of_their_own(place):
    alone = {}
    for name in RUNS:
        code = (
            "import json, pathlib, torch; torch.set_num_threads(1); from tests.runs.test_stages import run_one; "
            f"print(json.dumps(run_one(pathlib.Path({str(place)!r}), {name!r})))"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
        alone[name] = json.loads(shown.stdout.splitlines()[-1])
    base = microplane.load(place / "model", dtype="int8")
    together = {}
    for name in RUNS:
        base.generate("say aa", max_new_tokens=3, temperature=1.0)
        together[name] = run_one(place, name)
        microplane.load(next((place / "runs").glob(f"{name}-{os.getpid()}*"))).generate("say bb", max_new_tokens=3)
    assert together == alone
