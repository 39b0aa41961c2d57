"""A folder of sentence-transformers says how many tokens of a sentence are read."""

from __future__ import annotations

import json

import pytest
import torch

import microplane
from microplane.adapters.export import write_folder
from microplane.errors import ConfigError, ModelError
from tests import labels

WORDS = "the red film is good"


@pytest.mark.parametrize(("told", "read"), [(5, 3), (6, 4), (100, 5), (None, 5), ("5", 5)])
def test_no_more_of_a_sentence_is_read_than_the_folder_says(told, read, tmp_path):
    folder = labels.encoder_folder(tmp_path / "model", "mpnet")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": told}))
    opened = microplane.load(folder, "float32")
    begun = " ".join(WORDS.split()[:read])
    assert torch.equal(opened.embed([WORDS]), opened.embed([begun]))
    shorter = " ".join(WORDS.split()[: read - 1])
    assert not torch.equal(opened.embed([WORDS]), opened.embed([shorter]))


STEPS = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def sentence_folder(folder, steps=STEPS, pooling=CLS, at="1_Pooling", lengths=None, told=None):
    labels.encoder_folder(folder, "mpnet")
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in steps]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / at).mkdir()
    (folder / at / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps(lengths or {}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told or {}))
    return microplane.load(folder, "float32")


@pytest.mark.parametrize("at", ["1_Pooling", "2_pool"])
def test_the_pooling_lies_where_modules_json_says(at, tmp_path):
    steps = [("", "Transformer"), (at, "Pooling")]
    opened = sentence_folder(tmp_path / "model", steps, at=at)
    assert torch.equal(opened.embed([WORDS]), opened.embed([WORDS], pooling="cls"))
    assert not torch.equal(opened.embed([WORDS]), opened.embed([WORDS], pooling="mean"))


@pytest.mark.parametrize("kind", ["Dense", "LSTM", "WeightedLayerPooling"])
def test_a_further_step_is_refused_unless_a_pooling_is_given(kind, tmp_path):
    opened = sentence_folder(tmp_path / "model", [*STEPS, ("3_more", kind)])
    with pytest.raises(ConfigError, match=rf"modules\.json asks for 'cls, {kind}', which is not supported"):
        opened.embed([WORDS])
    assert opened.embed([WORDS], pooling="cls").shape == (1, 32)


def test_two_poolings_at_once_are_refused_unless_one_is_given(tmp_path):
    opened = sentence_folder(tmp_path / "model", pooling={**CLS, "pooling_mode_mean_tokens": True})
    with pytest.raises(ConfigError, match=r"asks for '\w+ with \w+', which is not supported"):
        opened.embed([WORDS])
    assert opened.embed([WORDS], pooling="cls").shape == (1, 32)


def test_a_damaged_list_of_steps_is_refused(tmp_path):
    sentence_folder(tmp_path / "model")
    (tmp_path / "model" / "modules.json").write_text('[{"path": ""}]')
    with pytest.raises(ModelError, match=r"modules\.json is damaged"):
        microplane.load(tmp_path / "model")


def test_sentences_are_read_with_the_folders_prompt_and_in_its_letters(tmp_path):
    told = {"prompts": {"query": "good ", "other": "bad "}, "default_prompt_name": "query"}
    opened = sentence_folder(tmp_path / "model", told=told)
    plain = sentence_folder(tmp_path / "plain")
    assert torch.equal(opened.embed([WORDS]), plain.embed([f"good {WORDS}"]))
    assert not torch.equal(opened.embed([WORDS]), plain.embed([WORDS]))
    lower = sentence_folder(tmp_path / "lower", lengths={"do_lower_case": True})
    lower.tokenizer.backend.normalizer = plain.tokenizer.backend.normalizer = None
    assert torch.equal(lower.embed(["The RED film"]), plain.embed(["the red film"]))
    assert not torch.equal(plain.embed(["The RED film"]), plain.embed(["the red film"]))


@pytest.mark.parametrize("step", ["1_Pooling", "2_pool"])
def test_a_pooling_that_leaves_the_prompt_out_is_refused_where_there_is_one(tmp_path, step):
    prompt = {"prompts": {"query": "good "}, "default_prompt_name": "query"}
    steps, apart = [("", "Transformer"), (step, "Pooling")], {**CLS, "include_prompt": False}
    opened = sentence_folder(tmp_path / "model", steps, at=step, pooling=apart, told=prompt)
    with pytest.raises(ConfigError, match=r"asks for 'cls, without the tokens of its prompt', which is not supported"):
        opened.embed([WORDS])
    with_it = sentence_folder(tmp_path / "with", steps, at=step, pooling=CLS, told=prompt)
    assert torch.equal(opened.embed([WORDS], pooling="cls"), with_it.embed([WORDS]))
    without = sentence_folder(tmp_path / "without", steps, at=step, pooling=apart)
    assert without.embed([WORDS]).shape == (1, 32)


def test_a_written_folder_has_every_step_that_its_list_names(tmp_path):
    steps = [("", "Transformer"), ("2_pool", "Pooling"), ("3_dense", "Dense"), ("4_norm", "Normalize")]
    opened = sentence_folder(tmp_path / "model", steps, at="2_pool")
    (tmp_path / "model" / "3_dense").mkdir()
    (tmp_path / "model" / "3_dense" / "model.safetensors").write_bytes(b"weights of a layer")
    assert "3_dense" not in " ".join(write_folder(opened, tmp_path / "out", torch.float32, [WORDS]))
    for name in ("modules.json", "2_pool/config.json", "3_dense/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize("place", ["3_dense", "../beside", "/etc"])
def test_a_step_that_is_not_in_the_folder_is_told_and_nothing_is_taken_from_outside(place, tmp_path):
    opened = sentence_folder(tmp_path / "model", [*STEPS, (place, "Dense")])
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "file").write_text("of another model")
    told = " ".join(write_folder(opened, tmp_path / "out", torch.float32, [WORDS]))
    assert ("modules.json names 3_dense, which" in told) == (place == "3_dense")
    assert not list((tmp_path / "out").rglob("file"))
