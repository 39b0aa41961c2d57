"""The ways out of models that were trained: SmolLM2 by five methods, a T5 of 10 million parameters, Marian, MiniLM.

What is found is printed (`pytest -s`), for the tests ask for less than they find.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import microplane
from microplane.adapters.convert import convert
from microplane.cli.demo import recipe
from microplane.config.knobs import GenerateKnobs
from microplane.errors import AdapterError, DataError
from microplane.exports import compare, ctranslate2, source
from microplane.exports.export import export
from microplane.exports.formats import FORMATS
from microplane.exports.source import opened
from microplane.models.families import family_of
from microplane.models.files.load import save_model
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import PAIR_CONFIGS

pytestmark = pytest.mark.slow
ST = "sentence-transformers"
ASKED, MOST = 20, 64  # prompts, and tokens of an answer
HOW: dict[str, Any] = {"train.threads": 1, "model.dtype": "float32", "eval.rows": ASKED, "train.steps": 120}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {},
    "rank=auto": {"method.name": "lora", "method.rank": "auto"},
    "dora": {},
    "nb-lora": {},
}
llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="pip install 'microplane[export-gguf]'")
onnxruntime = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="pip install 'microplane[export-onnx]'")
sentences = pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="pip install sentence-transformers")
converter = pytest.mark.skipif(find_spec("ctranslate2") is None, reason="pip install 'microplane[export-ct2]'")


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    try:
        recipe().build(folder, lang="en", train_rows=100, test_rows=50)
    except DataError as error:
        if "could not be fetched" in str(error):
            pytest.skip(f"no network: {error}")
        raise
    return folder


@pytest.fixture(autouse=True)
def _longer(monkeypatch):
    """20 held-out prompts, with room for whole answers."""
    monkeypatch.setattr(source, "PROMPTS", ASKED)
    for module in (source, compare):
        monkeypatch.setattr(module, "WRITTEN", MOST)


def checked(record: Path) -> list[dict[str, Any]]:
    found = json.loads(record.read_text())["checked"]
    for one in found:
        told = {name: value for name, value in one.items() if name != "other_ids"}
        print(record.parent.name, record.stem, told, len(one["other_ids"]), file=sys.stderr)
    return found


def same(engine: dict[str, Any], most: float = 2e-3) -> bool:
    return engine["continuations"] == [None] * ASKED and engine["difference"] < most and engine["other_ids"] == []


# SmolLM2


@pytest.fixture(scope="module", params=METHODS)
def run(request, smollm2, commands, tmp_path_factory) -> microplane.Run:
    how = HOW | {"train.steps": 30, "train.batch_size": 4} | {"method.name": request.param} | METHODS[request.param]
    how |= {"data.system": "", "runs": str(tmp_path_factory.mktemp("runs")), "name": request.param.replace("=", "-")}
    return microplane.train(str(smollm2), str(commands), set=how)


def test_answers_end(run):
    """So that an engine whose answers are the same ends its own too."""
    own = opened(run.folder, FORMATS["peft"])
    ended = [answer[-1] == -1 for answer in compare.continuations(own, own.prompts())]
    print(run.folder.name, f"{sum(ended)} of {len(ended)} end", run.metrics, file=sys.stderr)
    assert len(ended) == ASKED
    assert sum(ended) > ASKED / 2


@llama_cpp
def test_gguf(run, tmp_path):
    export(run.folder, tmp_path / "out.gguf", "gguf", "float32")
    [back, engine] = checked(tmp_path / "out.export.json")
    assert same(back)
    assert same(engine)


@llama_cpp
def test_gguf_lora(run, tmp_path):
    export(run.folder, tmp_path / "out.gguf", "gguf-lora", "float32")
    [back, engine, off] = checked(tmp_path / "out.export.json")
    assert same(off)
    if "dora" not in run.folder.name:  # which is converted, with its error
        assert same(back)
        assert same(engine)


def test_hf(run, tmp_path):
    export(run.folder, tmp_path / "out", "hf", "float32")
    [engine] = checked(tmp_path / "out" / "export.json")
    assert same(engine)


def test_peft(run, tmp_path):
    """Or, of a method that peft has no format for, as what `microplane convert` makes of it."""
    adapter = run.folder
    if not (run.folder / "adapter" / "adapter_config.json").is_file():
        with pytest.raises(AdapterError, match="microplane convert .* writes it as LoRA"):
            export(run.folder, tmp_path / "out", "peft")
        adapter = tmp_path / "converted"
        convert(run.folder, adapter)
    export(adapter, tmp_path / "out", "peft")
    [engine] = checked(tmp_path / "out" / "export.json")
    assert same(engine)


# Encoder-decoders


def t5_folder(folder: Path, tokenizer: Path) -> Path:
    """A T5 of 10 million parameters with T5's own vocabulary."""
    folder.mkdir(parents=True)
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    fields = PAIR_CONFIGS["t5-v1.0"] | {"vocab_size": 32128, "d_model": 192, "d_ff": 1024, "d_kv": 32, "num_heads": 6}
    fields |= {"num_layers": 3, "num_decoder_layers": 3, "pad_token_id": 0, "eos_token_id": 1}
    save_model(family_of(fields).from_hf(fields).init_weights(0), folder)
    return folder


def pairs(file: Path, commands: Path) -> Path:
    """Commands and what they ask for, without the braces that T5's vocabulary lacks."""
    rows = [json.loads(line) for line in (commands / "train.jsonl").read_text().splitlines()]
    meant = [", ".join(f"{name} {value}" for name, value in json.loads(row["output"]).items()) for row in rows]
    lines = [{"inputs": row["input"], "targets": text} for row, text in zip(rows, meant, strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module", params=["t5", "marian"])
def pair_run(request, commands, t5_tokenizer, tmp_path_factory) -> microplane.Run:
    place = tmp_path_factory.mktemp(request.param)
    base = (
        pair_folder(place / "base", "marian") if request.param == "marian" else t5_folder(place / "base", t5_tokenizer)
    )
    how = HOW | {"train.lr": 3e-3, "runs": str(place), "name": request.param, "data.max_unknown": 1}
    return microplane.train(str(base), str(pairs(place / "rows.jsonl", commands)), method="full", set=how)


def searched(own: Any, engine: Any, asked: list[str], **there: Any) -> list[tuple[list[int], ...]]:
    """The ids of the best of four beams, here and there, with the token that ends them where one does."""
    ours = own.pipeline.answers(asked, GenerateKnobs(beams=4, max_new_tokens=MOST))
    given = [engine.tokens(own.pipeline.prompt(one)) for one in asked]
    found = engine.engine.translate_batch(
        given, beam_size=4, max_decoding_length=MOST, min_decoding_length=0,
        end_token=engine.ends, return_end_token=True, **there,
    )  # fmt: skip
    theirs = [[engine.numbers[token] for token in one.hypotheses[0]] for one in found]
    end = [own.pipeline.stop_ids[0]]
    return [(one.ids + end * one.stopped, other) for one, other in zip(ours, theirs, strict=True)]


@converter
def test_beams_are_the_same(pair_run, commands, tmp_path):
    """CTranslate2 takes the beams that have ended once there are enough; here, as in transformers, one that is likelier
    so far goes on, and where it repeats itself never ends. With enough patience it goes on there too."""
    export(pair_run.folder, tmp_path / "out", "ctranslate2", "float32")
    [one] = checked(tmp_path / "out" / "export.json")
    assert same(one)
    own = opened(pair_run.folder, FORMATS["ctranslate2"])
    engine = ctranslate2.CTranslate2(tmp_path / "out", own, "float32")
    rows = [json.loads(line) for line in (commands / "test.jsonl").read_text().splitlines()]
    asked = [row["input"] for row in rows][:50]
    found = {
        "by itself": searched(own, engine, asked),
        "with patience": searched(own, engine, asked, patience=float(MOST)),
    }
    alike = {how: sum(mine == theirs for mine, theirs in pairs) for how, pairs in found.items()}
    ended = sum(mine[-1:] == [own.pipeline.stop_ids[0]] for mine, _ in found["by itself"])
    print(pair_run.folder.name, f"of {len(asked)} best beams the same: {alike}; {ended} end", file=sys.stderr)
    assert len(asked) == 50
    assert alike["by itself"] > 40
    assert alike["with patience"] == 50


@converter
def test_int8_of_ctranslate2_is_near(pair_run, tmp_path):
    export(pair_run.folder, tmp_path / "out", "ctranslate2", "int8")
    [narrow, wide] = checked(tmp_path / "out" / "export.json")
    assert 0 < wide["difference"] < 0.5
    assert narrow["difference"] < 2  # on processors whose sums overflow, which is told


def test_a_t5_of_10_million_parameters_has_so_many(t5_tokenizer, tmp_path):
    model = microplane.load(t5_folder(tmp_path / "base", t5_tokenizer)).model
    assert 9e6 < sum(tensor.numel() for tensor in torch.nn.Module.parameters(model)) < 11e6


# MiniLM


@onnxruntime
@pytest.mark.parametrize("method", ["head-only", "lora", "full"])
def test_minilm_with_a_head(method, minilm, commands, tmp_path):
    """Of commands and questions."""
    rows = [json.loads(line) for line in (commands / "train.jsonl").read_text().splitlines()]
    asks = [json.loads(row["output"])["intent"].startswith("HassGet") for row in rows]
    lines = [
        {"text": row["input"], "label": "asks" if is_one else "does"} for row, is_one in zip(rows, asks, strict=True)
    ]
    how = HOW | {"train.steps": 20, "runs": str(tmp_path), "name": method}
    run = microplane.train(str(minilm), lines, method=method, set=how)
    export(run.folder, tmp_path / "out.onnx", "onnx")
    [one] = checked(tmp_path / "out.export.json")
    assert (one["measure"], one["texts"]) == ("score", 0)
    assert one["difference"] < 1e-4


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=onnxruntime), pytest.param(ST, marks=sentences)])
def test_minilm_as_it_embeds(form, minilm, tmp_path):
    export(minilm, tmp_path / "out", form)
    [one] = checked(tmp_path / "out" / "export.json")
    assert one["measure"] == "embedding"
    assert one["difference"] < 1e-4
