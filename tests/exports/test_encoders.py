"""Encoders for onnxruntime and sentence-transformers: the same scores and embeddings, whatever is padded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from microplane.errors import AdapterError
from microplane.exports import onnx
from microplane.exports.export import export
from microplane.exports.formats import FORMATS
from microplane.exports.onnx import INPUTS, TYPES, Padded, pooled_rows
from microplane.exports.source import opened
from microplane.exports.vectors import compare_vectors, ours
from microplane.inference.pipeline import load
from microplane.inference.predict import as_embedded
from microplane.models.files.sentence_transformers import sentence_pooling
from tests.adapters.test_leaving import adapter
from tests.exports.kit import folder_of
from tests.labels import encoder_folder

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="pip install 'microplane[export-onnx]'")
needs_st = pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="pip install sentence-transformers")
TEXTS = ["the red film is good", "bad", "a plot it was not three", "good good good"]
TASKS = [("classification", "cls"), ("classification", "mean"), ("tokens", None), ("regression", "mean"), (None, None)]


def run_of(base: Path, folder: Path, task: str | None, pooling: str | None) -> Path:
    return adapter(base, folder, "lora", task, pooling)


@pytest.mark.parametrize(
    ("family", "task", "pooling"),
    [
        *(("bert", *one) for one in TASKS),
        *((family, *TASKS[0]) for family in ("roberta", "mpnet")),
        *(("modernbert", *one) for one in TASKS[1:3]),
    ],
)
def test_padded_batches_say_what_rows_side_by_side_do(family, task, pooling, tmp_path, monkeypatch):
    """The module that is traced, without an engine."""
    run = run_of(encoder_folder(tmp_path / "base", family), tmp_path / "adapter", task, pooling)
    kept = {}

    def keep(module: Padded, file: Path, typed: bool) -> None:
        kept["module"], kept["typed"] = module, typed
        file.write_bytes(b"")

    monkeypatch.setattr(onnx, "_trace", keep)
    monkeypatch.setattr(onnx, "lacking", lambda *packages: "")
    monkeypatch.setattr(onnx, "usable", lambda package: False)
    export(run, tmp_path / "out", "onnx")
    source = opened(run, FORMATS["onnx"])

    class Session:
        def run(self, _, inputs):
            given = [torch.from_numpy(inputs[name]) for name in (*INPUTS, *([TYPES] if kept["typed"] else []))]
            with torch.no_grad():
                return [kept["module"](*given).numpy()]

    engine = onnx.OnnxRuntime.__new__(onnx.OnnxRuntime)
    engine.session, engine.source, engine.typed = Session(), source, kept["typed"]
    found = compare_vectors(source, "padded", engine.said)
    assert found.difference < 1e-4
    assert kept["typed"] is (family in ("bert", "roberta"))
    assert not kept["module"].training


def test_last_tokens_and_means_leave_padding_out():
    hidden, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(pooled_rows(hidden, mask, "mean")[1], hidden[1, :2].mean(0))
    torch.testing.assert_close(pooled_rows(hidden, mask, "last")[1], hidden[1, 1])
    torch.testing.assert_close(pooled_rows(hidden, mask, "cls")[1], hidden[1, 0])


def test_sentences_are_read_as_the_models_folder_has_it_and_that_is_told(tmp_path):
    base = encoder_folder(tmp_path / "base", "bert")
    source, said = opened(base, FORMATS["onnx"]), []
    model = source.pipeline.model
    model.sentence_prompt, model.sentence_lower, model.sentence_tokens = "good ", True, 6

    class Session:
        def run(self, _, inputs):
            said.append(inputs[INPUTS[0]])
            return [np.zeros((len(inputs[INPUTS[0]]), 1))]

    engine = onnx.OnnxRuntime.__new__(onnx.OnnxRuntime)
    engine.session, engine.source, engine.typed = Session(), source, False
    engine.said(["The red film", "bad " * 9])
    wanted = as_embedded(model, source.tokenizer, ["The red film", "bad " * 9])
    assert [row[: len(one.ids)] for row, one in zip(said[0].tolist(), wanted, strict=True)] == [
        one.ids for one in wanted
    ]
    assert len(wanted[1].ids) == 6
    told = list(onnx.read_as(model))
    assert [part in line for part, line in zip(("'good '", "small letters", "6 tokens"), told, strict=True)] == [
        True
    ] * 3


def test_what_computes_something_else_is_refused(tmp_path):
    source = opened(encoder_folder(tmp_path / "base"), FORMATS["onnx"])
    with pytest.raises(AdapterError, match="something else: embeddings differ by"):
        compare_vectors(source, "it", lambda texts: [one + 0.01 for one in ours(source, texts)])
    with pytest.raises(AdapterError, match="something else"):
        compare_vectors(source, "it", lambda texts: [one * torch.nan for one in ours(source, texts)])


def test_decoders_and_heads_have_no_place(tmp_path):
    with pytest.raises(AdapterError, match="is a decoder; for that there are hf, gguf, ollama, ctranslate2"):
        export(folder_of(tmp_path / "llama"), tmp_path / "out", "onnx")
    run = run_of(encoder_folder(tmp_path / "base"), tmp_path / "adapter", "classification", "cls")
    with pytest.raises(AdapterError, match="embeds nothing"):
        export(run, tmp_path / "out", "sentence-transformers")
    assert not (tmp_path / "out").exists()


def test_settings_of_sentence_transformers_are_read_back_and_the_folder_opens_in_transformers(tmp_path, monkeypatch):
    from microplane.exports import sentence_transformers

    monkeypatch.setattr(sentence_transformers, "usable", lambda package: False)
    base = encoder_folder(tmp_path / "base", "modernbert")
    told = {"prompts": {"query": "good "}, "default_prompt_name": "query"}
    (base / "config_sentence_transformers.json").write_text(json.dumps(told))
    (base / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40, "do_lower_case": True}))
    done = export(run_of(base, tmp_path / "adapter", None, None), tmp_path / "out", "sentence-transformers")
    out = tmp_path / "out"
    assert sentence_pooling(out) == "mean"
    assert [one["path"] for one in json.loads((out / "modules.json").read_text())] == ["", "1_Pooling", "2_Normalize"]
    assert json.loads((out / "sentence_bert_config.json").read_text())["max_seq_length"] == 40
    model = load(out).model
    assert (model.sentence_tokens, model.sentence_prompt, model.sentence_lower) == (40, "good ", True)
    assert not (out / "model").exists()
    torch.testing.assert_close(
        load(out, dtype="float32").embed(TEXTS), load(tmp_path / "adapter", dtype="float32").embed(TEXTS)
    )
    transformers.AutoModel.from_pretrained(out)
    assert any("SentenceTransformer" in line for line in done.lines)


# With the engines


def record(folder: Path) -> dict:
    [one] = json.loads((folder / "export.json").read_text())["checked"]
    return one


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "modernbert"])
@pytest.mark.parametrize(("task", "pooling"), TASKS)
def test_onnxruntime_says_the_same(family, task, pooling, tmp_path):
    run = run_of(encoder_folder(tmp_path / "base", family), tmp_path / "adapter", task, pooling)
    export(run, tmp_path / "out", "onnx")
    assert record(tmp_path / "out")["difference"] < 1e-4
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "export.json"} <= names
    assert not any(name.endswith(".data") for name in names)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("task", ["classification", None])
def test_minilm_in_onnxruntime(task, minilm, tmp_path):
    export(run_of(minilm, tmp_path / "adapter", task, "mean"), tmp_path / "out.onnx", "onnx")
    [one] = json.loads((tmp_path / "out.export.json").read_text())["checked"]
    assert one["difference"] < 1e-4


@pytest.mark.slow
@needs_st
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "modernbert", "minilm"])
def test_sentence_transformers_embeds_the_same(family, minilm, tmp_path):
    base = minilm if family == "minilm" else encoder_folder(tmp_path / "base", family)
    export(run_of(base, tmp_path / "adapter", None, None), tmp_path / "out", "sentence-transformers")
    one = record(tmp_path / "out")
    assert one["measure"] == "embedding"
    assert one["difference"] < 1e-4
