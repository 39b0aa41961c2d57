"""GGUF files: equal logits and equal ids through our own reader, and in llama.cpp where it is installed."""

from __future__ import annotations

import errno
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers, processors

from microplane.data.tokenizers.gguf import CUTS, KEY, WHOLE_WORDS, _cut
from microplane.errors import AdapterError, ConfigError, DataError
from microplane.exports import gguf_file
from microplane.exports.export import export
from microplane.exports.gguf_file import check_whole
from microplane.exports.gguf_model import permuted
from microplane.exports.gguf_tokens import cut_name
from microplane.inference.pipeline import load
from microplane.models.files.gguf import unpermuted
from microplane.models.files.gguf_format import read_header
from microplane.nn.rows import Rows
from tests.exports.kit import FAMILIES, adapter_of, byte_level, folder_of, sentencepiece

TEXTS = [
    "the thing is on",
    "12 the ½ théâtre\n\n  Được 345",
    "a<tool>b<|im_end|>\n",
    "",
    " x",
    "!!  the",
    "言語",
    "the's",
]


def logits(pipeline, ids):
    with torch.no_grad():
        return pipeline.model.logits(pipeline.model(Rows.of([ids])))


QUICK = ("llama3", "qwen3", "gemma2", "mistral", "smollm3")


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_a_merged_decoder_comes_back_with_the_same_logits_and_ids(family, tmp_path):
    base = folder_of(tmp_path / "base", family)
    run = adapter_of(base, tmp_path / "adapter")
    done = export(run, tmp_path / "out", "gguf")
    ours, theirs = load(run, dtype="float32"), load(tmp_path / "out" / "model.gguf", dtype="float32")
    for text in TEXTS:
        ids = ours.tokenizer.encode(text)
        assert theirs.tokenizer.encode(text) == ids
        if ids:
            torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), atol=2e-5, rtol=1e-4)
    assert theirs.stop_ids[0] == ours.stop_ids[0]
    assert theirs.prompt("the thing") == ours.prompt("the thing")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    back = record["checked"][0]
    assert back["engine"] == "read back"
    assert back["difference"] < 1e-4
    assert back["continuations"] == [None] * 10
    assert any("10 of 10 greedy continuations are the same" in line for line in done.lines)


@pytest.mark.parametrize(
    ("cut", "whole"), [("gpt-2", 0), ("smollm", 0), ("llama-bpe", 1), ("smaug-bpe", 0), ("qwen2", 0)]
)
def test_the_name_of_the_cut_follows_from_the_tokenizer(cut, whole, tmp_path):
    base = folder_of(tmp_path / "base", backend=byte_level(cut, bool(whole)))
    export(base, tmp_path / "model.gguf", "gguf")
    assert read_header(tmp_path / "model.gguf").metadata[f"{KEY}pre"] == cut
    ours, theirs = load(base).tokenizer, load(tmp_path / "model.gguf").tokenizer
    assert [theirs.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert (tmp_path / "model.export.json").is_file()


@pytest.mark.parametrize("name", CUTS)
def test_whatever_cut_a_file_names_is_written_again(name):
    backend = byte_level(whole=name in WHOLE_WORDS)
    backend.pre_tokenizer = _cut(CUTS[name])
    found = cut_name(json.loads(backend.to_str()))
    assert (CUTS[found], found in WHOLE_WORDS) == (CUTS[name], name in WHOLE_WORDS)


@pytest.mark.parametrize(
    ("behavior", "invert", "known"),
    [("isolated", False, True), ("removed", True, True), ("merged_with_next", False, False), ("isolated", True, False)],
)
def test_what_is_cut_at_the_same_places_otherwise_is_another_cut(behavior, invert, known):
    from tokenizers import Regex

    backend = byte_level()
    split = pre_tokenizers.Split(Regex(CUTS["qwen2"][0]), behavior, invert)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    with nullcontext() if known else pytest.raises(AdapterError, match="no name for"):
        assert cut_name(json.loads(backend.to_str())) == "qwen2"


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_keeps_ids_by_scores_in_the_order_of_merges(prefix, tmp_path):
    base = folder_of(tmp_path / "base", backend=sentencepiece(prefix), template=None)
    export(base, tmp_path / "model.gguf", "gguf")
    told = read_header(tmp_path / "model.gguf").metadata
    assert told[f"{KEY}model"] == "llama"
    assert told[f"{KEY}add_space_prefix"] is prefix
    types, texts = told[f"{KEY}token_type"], told[f"{KEY}tokens"]
    assert (types[0], types[1], types[texts.index("<0x0A>")], types[-1]) == (2, 3, 6, 5)
    scores = told[f"{KEY}scores"]
    assert scores[texts.index("▁th")] > scores[texts.index("▁the")] > scores[texts.index("ing")]
    ours, theirs = load(base).tokenizer, load(tmp_path / "model.gguf").tokenizer
    for text in ("the thing on a ring", "théâtre", "a  the", "another"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(theirs.encode(text)) == text


@pytest.mark.parametrize(("dtype", "most"), [("float16", 0.02), ("bfloat16", 0.2), ("q8_0", 1.5), ("q4_0", 12.0)])
def test_smaller_formats_say_how_far_they_are(dtype, most, tmp_path):
    base = folder_of(tmp_path / "base", "llama-untied", hidden_size=64, intermediate_size=80)
    export(base, tmp_path / "out", "gguf", dtype)
    entries = read_header(tmp_path / "out" / "model.gguf").tensors
    kinds = {name: entry.kind for name, entry in entries.items()}
    want = {"float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    assert kinds["blk.0.attn_q.weight"] == want
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["output.weight"] == ("Q8_0" if dtype == "q4_0" else want)
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if dtype.startswith("q") else want)  # 80 is no multiple of 32
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert 0 < record["checked"][0]["difference"] < most


def test_q_and_k_are_permuted_as_the_reader_undoes_it():
    weight = torch.randn(24, 5)
    assert not torch.equal(permuted(weight, 4), weight)
    assert torch.equal(unpermuted(permuted(weight, 4), 4), weight)


def test_keys_that_llama_cpp_stops_and_renders_by(tmp_path):
    base = folder_of(tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    export(base, tmp_path / "model.gguf", "gguf")
    told = read_header(tmp_path / "model.gguf").metadata
    assert [told.get(f"{KEY}{name}_token_id") for name in ("eos", "eot", "bos", "padding")] == [2, 0, 0, 0]
    assert told[f"{KEY}add_bos_token"] is False
    assert "<|im_start|>" in told["tokenizer.chat_template"]
    assert told["llama.vocab_size"] == len(told[f"{KEY}tokens"])
    assert told[f"{KEY}token_type"][-1] == 5
    assert told[f"{KEY}token_type"][told[f"{KEY}tokens"].index("<tool>")] == 4


def test_a_window_becomes_the_context(tmp_path):
    base = folder_of(tmp_path / "base", "mistral", sliding_window=24)
    done = export(base, tmp_path / "model.gguf", "gguf")
    assert read_header(tmp_path / "model.gguf").metadata["llama.context_length"] == 24
    assert any("limited to the 24 tokens" in line for line in done.lines)


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("qwen3", {"attention_bias": True}, "qkv biases and has o biases"),
        ("llama-tied", {"hidden_act": "gelu"}, "activation gelu"),
        ("gemma2", {"tie_word_embeddings": False}, "head of its own"),
        ("gemma2", {"query_pre_attn_scalar": 7}, "attention_scale"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "another order"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "turn with the position otherwise"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, None),
    ],
)
def test_what_llama_cpp_cannot_be_is_refused_and_nothing_stays(family, changes, match, tmp_path):
    base = folder_of(tmp_path / "base", family, **changes)
    if match is None:
        export(base, tmp_path / "out", "gguf")
        return
    with pytest.raises(AdapterError, match=match):
        export(base, tmp_path / "out", "gguf")
    with pytest.raises(AdapterError, match=match):
        export(base, tmp_path / "out.gguf", "gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_tokenizers_methods_and_formats_that_have_no_place(tmp_path):
    plain = byte_level("gpt-2", whole=True)
    with pytest.raises(AdapterError, match="no name for"):
        export(folder_of(tmp_path / "a", backend=plain), tmp_path / "out", "gguf")
    base = folder_of(tmp_path / "b")
    prefix = adapter_of(base, tmp_path / "prefix", "prefix")
    with pytest.raises(AdapterError, match="no weight of one"):
        export(prefix, tmp_path / "out", "gguf")
    with pytest.raises(ConfigError, match="possible are float32, float16"):
        export(base, tmp_path / "out", "gguf", "int3")
    with pytest.raises(ConfigError, match="possible are hf, peft, gguf"):
        export(base, tmp_path / "out", "tflite")
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(AdapterError, match="exists"):
        export(base, tmp_path / "there.gguf", "gguf")
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_values_that_the_writer_loses_are_found(tmp_path, monkeypatch):
    base = folder_of(tmp_path / "base")
    add = gguf_file.add_metadata

    def forgets(writer, key, value):
        if not key.endswith("eot_token_id") and not key.endswith("add_bos_token"):
            add(writer, key, value)

    monkeypatch.setattr(gguf_file, "add_metadata", forgets)
    with pytest.raises(AdapterError, match="lost tokenizer.ggml.add_bos_token"):
        export(base, tmp_path / "out", "gguf")


def test_an_empty_text_is_lost_by_the_library(tmp_path):
    path = tmp_path / "x.gguf"
    one = lambda: iter([("token_embd.weight", torch.zeros(2, 4))])  # noqa: E731
    with pytest.raises(AdapterError, match="lost general.name"):
        gguf_file.write_gguf(path, "llama", {"general.name": ""}, one, "F32")
    gguf_file.write_gguf(path, "llama", {"general.name": "x"}, one, "F32")
    with pytest.raises(AdapterError, match="not those that were written"):
        check_whole(path, "llama", {}, {"other": "F32"})
    assert np.isfinite(read_header(path).read("token_embd.weight")).all()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    base = folder_of(tmp_path / "base")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    for out in ("out", "out.gguf"):
        with pytest.raises(OSError, match="No space"):
            export(base, tmp_path / out, "gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_run_of_plain_text_gets_no_template_and_is_told_how_it_is_asked(tmp_path):
    base = folder_of(tmp_path / "base")
    run = adapter_of(base, tmp_path / "adapter", about={"template": "plain", "system": "be short", "prefix": "JSON: "})
    done = export(run, tmp_path / "model.gguf", "gguf")
    assert "tokenizer.chat_template" not in read_header(tmp_path / "model.gguf").metadata
    told = "\n".join(done.lines)
    assert "without a chat template" in told
    assert "'be short'" in told
    assert "'JSON: '" in told


def test_a_run_that_continues_text_has_no_template_in_its_file(tmp_path):
    run = adapter_of(folder_of(tmp_path / "base"), tmp_path / "adapter", about={"frame": ["", ""]})
    done = export(run, tmp_path / "model.gguf", "gguf")
    assert "tokenizer.chat_template" not in read_header(tmp_path / "model.gguf").metadata
    assert any("without a chat template" in line for line in done.lines)


def test_an_end_that_the_tokenizer_adds_is_noted_and_stops_beyond_three_are_told(tmp_path):
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing("$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    base = folder_of(tmp_path / "base", backend=backend)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0, 1, 3]}))
    done = export(base, tmp_path / "model.gguf", "gguf")
    told = read_header(tmp_path / "model.gguf").metadata
    assert (told[f"{KEY}add_bos_token"], told[f"{KEY}add_eos_token"]) == (False, True)
    assert any("GGUF has places for three stop tokens: give '<unk>' as stop texts" in line for line in done.lines)


@pytest.mark.parametrize("number", [1e6, -1e6])
def test_numbers_beyond_float16_are_refused(tmp_path, number):
    base = folder_of(tmp_path / "base")
    pipeline = load(base)
    pipeline.model.embed.weight.data[0, 0] = number
    from microplane.models.files.load import save_model

    save_model(pipeline.model, base)
    with pytest.raises(AdapterError, match="above 65,504"):
        export(base, tmp_path / "out", "gguf", "float16")
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_refused_with_the_formats_for_it(minilm, tmp_path):
    with pytest.raises((AdapterError, DataError), match="is an encoder; for that there are hf"):
        export(minilm, tmp_path / "out", "gguf")
