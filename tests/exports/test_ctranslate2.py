"""CTranslate2's answers to what is exported; without it, what is refused before and the call that is printed."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from microplane.errors import AdapterError
from microplane.exports import ctranslate2, engines
from microplane.exports.compare import Comparison
from microplane.exports.export import export
from microplane.exports.formats import FORMATS
from microplane.exports.source import answer_scores, opened
from microplane.inference.pipeline import load
from microplane.models.files.load import load_model, save_model
from tests.exports.kit import adapter_of, folder_of
from tests.languages import CODES, NAMES, translation_folder
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import tiny

installed = pytest.mark.skipif(find_spec("ctranslate2") is None, reason="pip install 'microplane[export-ct2]'")
slow = pytest.mark.slow
WIDE: dict[str, dict[str, Any]] = {"gemma3": {"sliding_window": 110, "rope_scaling": None}}
DECODERS = (
    "llama-tied",
    "llama-untied",
    "llama-biases",
    "llama-linear",
    "qwen2",
    "qwen3",
    "gemma3",
    "mistral",
)


@pytest.mark.parametrize(
    ("family", "match"),
    [
        ("llama3", "as Llama 3 does"),
        ("llama-heads", "heads of 16, where 8"),
        ("mistral", "window"),
        ("gemma2", "window and caps its scores"),
        ("gemma3", "turns with the position otherwise"),
    ],
)
def test_what_it_would_compute_otherwise_is_refused(family, match, tmp_path):
    changes = {"sliding_window": 8} if family == "mistral" else {}
    model = load_model(folder_of(tmp_path / "base", family, **changes))
    with pytest.raises(AdapterError, match=match):
        ctranslate2.refuse(model, "it")


@pytest.mark.parametrize("family", ["llama-tied", "phi3", "starcoder2"])
def test_a_window_is_refused_of_each_family_that_was_not_compared(family):
    model = tiny(family)
    model.config = replace(model.config, windows=(None, 8))
    with pytest.raises(AdapterError, match="has an attention window"):
        ctranslate2.refuse(model, "it")
    model.config = replace(model.config, windows=(None, None))
    ctranslate2.refuse(model, "it")


def test_two_vocabularies_and_heads_are_refused(tmp_path):
    with pytest.raises(AdapterError, match="two vocabularies"):
        ctranslate2.refuse(load_model(pair_folder(tmp_path / "apart", "marian-apart")), "it")
    ctranslate2.refuse(load_model(pair_folder(tmp_path / "one", "marian")), "it")
    with pytest.raises(AdapterError, match="counts positions from its token for padding, 0, where 1 is taken"):
        ctranslate2.refuse(load_model(pair_folder(tmp_path / "pad", "m2m_100")), "it")


def test_without_the_package_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "ctranslate2" else object())
    with pytest.raises(AdapterError, match="needs ctranslate2: pip install"):
        export(pair_folder(tmp_path / "base", "t5"), tmp_path / "out", "ctranslate2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


@pytest.mark.parametrize("family", ["t5", "t5-v1.0", "marian"])
def test_scores_of_an_answer_are_those_of_the_loss(family, tmp_path):
    pipeline = load(pair_folder(tmp_path / "base", family), dtype="float32")
    prompt, answer = pipeline.prompt("say it"), [9, 30, 31, 1]
    scores = answer_scores(pipeline, prompt, answer)
    objective, model = pipeline.objective, pipeline.model
    from microplane.objectives.base import ProbeRow

    logits = objective.probe(model, ProbeRow([*prompt, *answer], len(prompt)))[: len(answer)]
    logits[:, list(model.generation_rules.bad_tokens)] = -torch.inf
    torch.testing.assert_close(scores, logits.log_softmax(-1)[range(len(answer)), answer])


def test_the_printed_call_names_every_end_and_allows_an_empty_answer(tmp_path):
    source = opened(pair_folder(tmp_path / "base", "t5"), FORMATS["ctranslate2"])
    [first, beams, _] = ctranslate2.call(source, "int8", ["</s>", "<end>"])
    assert "patience=max_decoding_length" in beams
    assert "min_decoding_length=0" in first
    assert "end_token=['</s>', '<end>']" in first
    assert "compute_type='int8'" in first


@pytest.mark.parametrize(("narrow", "wide", "told"), [(1.21, 0.036, True), (0.05, 0.036, False), (0.0, 0.0, False)])
def test_products_of_8_bits_that_overflow_are_told(narrow, wide, told):
    """Measured of one file: on a processor without VNNI, of rounded activations, and of what is exact."""
    compared = [Comparison("it", 1, (), 1, difference, (None,), "logit") for difference in (narrow, wide)]
    said = ctranslate2.overflows(*compared)
    assert [("is 34 times that" in line, "compute_type='float32'" in line) for line in said] == [(True, True)] * told


# With the engine


def record(folder):
    [one] = json.loads((folder / "export.json").read_text())["checked"]
    return one


@slow
@installed
@pytest.mark.parametrize("family", ["t5", "t5-v1.0", "marian", "bart", "mbart", "pegasus"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_encoder_decoders_answer_the_same(family, method, tmp_path):
    run = adapter_of(pair_folder(tmp_path / "base", family), tmp_path / "adapter", method)
    export(run, tmp_path / "out", "ctranslate2")
    one = record(tmp_path / "out")
    assert one["measure"] == "log-probability"
    assert one["difference"] < 1e-3
    assert one["continuations"] == [None] * 10


@slow
@installed
@pytest.mark.parametrize("name", NAMES)
def test_languages_are_the_same(name, tmp_path):
    base, (english, french, _) = translation_folder(tmp_path / "base", name), CODES[name]
    about = {"source_language": english, "target_language": french}
    run = adapter_of(base, tmp_path / "adapter", about=about)
    export(run, tmp_path / "out", "ctranslate2")
    one = record(tmp_path / "out")
    assert one["difference"] < 1e-3
    assert one["continuations"] == [None] * 10
    source = opened(run, FORMATS["ctranslate2"])
    call, *_ = ctranslate2.call(source, "int8", ["</s>"])
    token = source.tokenizer.languages.token(french)
    assert (f"target_prefix=[[{token!r}]]" in call) == (name != "mbart")


@slow
@installed
def test_beams_are_the_same(tmp_path):
    import ctranslate2 as library

    base = pair_folder(tmp_path / "base", "t5")
    export(base, tmp_path / "out", "ctranslate2")
    pipeline = load(base, dtype="float32")
    engine = ctranslate2.CTranslate2(tmp_path / "out", opened(base, FORMATS["ctranslate2"]), "float32")
    assert isinstance(engine.engine, library.Translator)
    prompts = [f"say {chr(97 + n % 26)}{n}" for n in range(50)]
    ours = pipeline.generate(prompts, beams=4, max_new_tokens=12)
    given = [engine.tokens(pipeline.prompt(prompt)) for prompt in prompts]
    found = engine.engine.translate_batch(given, beam_size=4, max_decoding_length=12, min_decoding_length=0)
    places = {token: number for number, token in enumerate(engine.vocabulary)}
    theirs = [pipeline.tokenizer.decode([places[token] for token in one.hypotheses[0]]) for one in found]
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    assert same == 50


@slow
@installed
def test_flan_t5_is_not_scaled_and_t5_is(tmp_path):
    for family, scaled in (("t5", False), ("t5-v1.0", True)):
        base = pair_folder(tmp_path / family, family)
        assert load_model(base).config.scaled is scaled
        export(base, tmp_path / f"{family}-out", "ctranslate2")
        assert record(tmp_path / f"{family}-out")["difference"] < 1e-3


@slow
@installed
def test_marian_keeps_the_row_that_it_starts_from(tmp_path):
    base = pair_folder(tmp_path / "base", "marian")
    model = load_model(base)
    model.get_parameter("embed.weight").data[model.config.pad] = 2.0 * torch.randn(model.config.hidden_size)
    save_model(model, base)
    export(base, tmp_path / "out", "ctranslate2")
    one = record(tmp_path / "out")
    assert one["difference"] < 1e-3
    assert one["continuations"] == [None] * 10


@slow
@installed
@pytest.mark.parametrize("family", DECODERS)
def test_decoders_answer_the_same(family, tmp_path):
    run = adapter_of(folder_of(tmp_path / "base", family, **WIDE.get(family, {})), tmp_path / "a", rank=4, alpha=2.0)
    export(run, tmp_path / "out", "ctranslate2")
    one = record(tmp_path / "out")
    assert one["difference"] < 1e-2
    assert one["continuations"].count(None) >= 9


@slow
@installed
def test_what_the_converter_does_not_know_is_refused(tmp_path):
    base = folder_of(tmp_path / "base", "smollm3")
    with pytest.raises(AdapterError, match="does not take a SmolLM3ForCausalLM"):
        export(base, tmp_path / "out", "ctranslate2")
    assert not (tmp_path / "out").exists()


@slow
@installed
def test_int8_says_how_far_it_is(tmp_path):
    base = pair_folder(tmp_path / "base", "t5")
    done = export(base, tmp_path / "out", "ctranslate2", "int8")
    narrow, wide = json.loads((tmp_path / "out" / "export.json").read_text())["checked"]
    assert 0 < wide["difference"] < narrow["difference"] < 2
    assert wide["engine"].endswith("computed in float32")
    assert any("compute_type='int8'" in line for line in done.lines)
    overflown = any("without VNNI" in line for line in done.lines)
    assert overflown is (narrow["difference"] > ctranslate2.OVERFLOWS * wide["difference"])
