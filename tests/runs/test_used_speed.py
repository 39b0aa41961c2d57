"""How fast a tuned model is in use, and where it can be used."""

from __future__ import annotations

import pytest

import microplane
from microplane.errors import MicroplaneWarning, ModelError
from microplane.exports.formats import FORMATS
from microplane.exports.ways import VLLM, ways
from microplane.methods import METHODS, make_method
from microplane.methods.method import attach_method
from microplane.runs import used_speed
from tests.data.preparing.test_doubts import asked
from tests.labels import encoder_folder, reviews
from tests.tiny import save_tiny_folder, tiny, tiny_encoder, tiny_pairs

SETS = {"train.threads": 1, "eval.rows": 0, "train.steps": 2, "train.batch_size": 2, "eval.speed": True}
MERGED = {"lora", "full", "ia3"}


@pytest.mark.parametrize("method", ["lora", "full", "prefix"])
def test_what_writes_is_timed_by_its_tokens(method, tmp_path, monkeypatch):
    monkeypatch.setattr(used_speed, "_timed", lambda work: work() and 2.0)
    model, sets = save_tiny_folder(tmp_path / "model"), SETS | {"runs": str(tmp_path / "runs")}
    result = microplane.train(model, asked(40), method=method, set=sets).result
    speed = result["speed"]
    assert speed["unit"] == "tokens"
    assert speed["per_second"] == result["data"]["validation_rows"] * used_speed.TOKENS / 2
    assert speed["merged"] == (method in MERGED)


def test_what_labels_is_timed_by_its_rows(tmp_path, monkeypatch):
    seconds = iter([2.0, 0.5, 1.0])
    monkeypatch.setattr(used_speed, "_timed", lambda work: next(seconds))
    sets = SETS | {"runs": str(tmp_path / "runs"), "data.validation_share": 0.2}
    speed = microplane.train(encoder_folder(tmp_path / "model"), reviews(), method="lora", set=sets).result["speed"]
    assert speed == {"per_second": 16.0, "unit": "rows", "merged": True}  # 16 rows in the median, a second


def test_it_is_not_timed_unasked_and_not_without_room(tmp_path, monkeypatch):
    model, sets = save_tiny_folder(tmp_path / "model"), SETS | {"runs": str(tmp_path / "runs")}
    monkeypatch.setattr(used_speed, "free_memory", lambda: 0)
    assert "speed" not in microplane.train(model, asked(40), set=sets).result
    monkeypatch.setattr(used_speed, "_opened", lambda *how: pytest.fail("opened"))
    assert "speed" not in microplane.train(model, asked(40), set=sets | {"eval.speed": False}).result


def test_a_run_is_done_where_it_cannot_be_opened_again(tmp_path, monkeypatch):
    def gone(*how):
        raise ModelError("its base is in no file")

    model, sets = save_tiny_folder(tmp_path / "model"), SETS | {"runs": str(tmp_path / "runs")}
    monkeypatch.setattr(used_speed, "_opened", gone)
    with pytest.warns(MicroplaneWarning, match="not measured: its base is in no file"):
        run = microplane.train(model, asked(40), set=sets)
    assert run.result["status"] == "success"
    assert "speed" not in run.result


def found(model, name: str) -> set[str]:
    attach_method(method := make_method(name), model)
    return {*ways(model, method)}


def test_where_a_decoder_can_be_used():
    whole = {"hf", "gguf", "ollama", "ctranslate2", VLLM}
    assert found(tiny(), "lora") == whole | {"peft", "gguf-lora"}
    assert found(tiny(), "full") == whole
    assert found(tiny(), "ia3") == whole | {"peft"}  # which no LoRA can stand for
    assert found(tiny(), "prompt") == {"peft"}
    assert found(tiny(), "bottleneck") == set()


def test_where_others_can_be_used():
    assert found(tiny_pairs(), "lora") == {"hf", "peft", "ctranslate2"}
    assert found(tiny_encoder(), "lora") == {"hf", "peft", "onnx", "sentence-transformers"}


@pytest.mark.parametrize("name", METHODS)
def test_every_way_is_a_format(name):
    method = make_method(name)
    assert {*ways(tiny(), method)} <= {*FORMATS, VLLM}


def test_a_task_head_has_fewer_ways(tmp_path):
    sets = SETS | {"runs": str(tmp_path / "runs"), "eval.speed": False}
    run = microplane.train(encoder_folder(tmp_path / "model"), reviews(), method="lora", set=sets)
    assert run.result["method"]["ways"] == ["hf", "peft", "onnx"]
