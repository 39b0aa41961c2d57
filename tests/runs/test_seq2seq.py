"""Encoder-decoders through the whole job: pairs in, an adapter or a model out, generation, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import microplane
from microplane.config.knobs import RunKnobs
from microplane.models.families import family_of
from microplane.models.files.load import save_model
from tests.cases import some
from tests.tiny import PAIR_CONFIGS, save_byte_tokenizer


def pair_folder(folder: Path, family: str = "t5") -> Path:
    """A tiny encoder-decoder with a tokenizer of bytes, in Hugging Face layout."""
    folder.mkdir(parents=True)
    size = save_byte_tokenizer(folder, ends=True)
    fields = PAIR_CONFIGS[family] | {"vocab_size": size, "eos_token_id": 1, "pad_token_id": 0}
    fields |= {"decoder_vocab_size": size} if "decoder_vocab_size" in fields else {}
    for name in ("encoder", "decoder"):
        if name in fields and "text_config" not in fields[name]:
            fields[name] = fields[name] | {"vocab_size": size}
        elif name in fields:
            fields[name] = fields[name] | {"text_config": fields[name]["text_config"] | {"vocab_size": size}}
    model = family_of(fields).from_hf(fields).init_weights(0)
    if family == "t5gemma2":
        add_tower(model)
    save_model(model, folder)
    return folder


def add_tower(model: Any) -> None:
    """T5Gemma 2's for pictures, with random weights, as its folders have it."""
    from transformers import AutoModelForSeq2SeqLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = model.config.to_hf() | {"pad_token_id": 0}
    fields["encoder"] = fields["encoder"] | {"vision_config": VISION, "mm_tokens_per_image": 4}
    torch.manual_seed(0)
    whole = AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING["t5gemma2"].from_dict(fields))
    model.extra_weights = {name: x.detach() for name, x in whole.named_parameters() if model.is_head_weight(name)}
    model.source_config = {"encoder": fields["encoder"], "image_token_index": 12}


VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def shout(folder: Path, rows: int = 60) -> Path:
    lines = [{"inputs": f"say {chr(97 + n % 26)}{n}", "targets": f"{chr(65 + n % 26)}{n % 7}"} for n in range(rows)]
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data.jsonl"


SET = {"train.steps": 12, "train.lr": 3e-3, "model.dtype": "float32", "train.eval_every": 4, "eval.rows": 4}


@pytest.mark.parametrize(
    ("family", "method"),
    some(
        [(family, method) for family in PAIR_CONFIGS for method in ("lora", "full")],
        [("t5", "lora"), ("marian", "full"), ("marian-apart", "lora")],
    ),
)
def test_an_encoder_decoder_learns_and_is_opened_again(family, method, tmp_path):
    model, data = pair_folder(tmp_path / "model", family), shout(tmp_path)
    run = microplane.train(str(model), str(data), method=method, set=SET | {"runs": str(tmp_path / "runs")})
    assert run.result["status"] == "success"
    assert run.metrics["after"]["loss"] < run.metrics["before"]["loss"]
    assert all(check["passed"] in (True, None) for check in run.result["checks"]), run.result["checks"]
    loaded = run.load()
    assert loaded.objective.name == "seq2seq"
    assert isinstance(loaded.generate("say a1", max_new_tokens=5), str)


def test_bfloat16_products_with_float32_weights(tmp_path):
    model, data = pair_folder(tmp_path / "model"), shout(tmp_path)
    knobs = SET | {"runs": str(tmp_path / "runs"), "model.dtype": "bfloat16"}
    run = microplane.train(str(model), str(data), method="full", set=knobs)
    assert run.metrics["after"]["loss"] < run.metrics["before"]["loss"]
    assert {p.dtype for p in microplane.load(run.folder / "adapter", "float32").model.parameters()} == {torch.float32}
    assert all(check["passed"] in (True, None) for check in run.result["checks"]), run.result["checks"]


def test_text_becomes_span_corruption_from_random_weights(tmp_path):
    model = pair_folder(tmp_path / "model")
    (model / "model.safetensors").unlink()
    words = "the quick brown fox jumps over the lazy dog and runs away".split()
    lines = [{"text": " ".join(words[n % 5 :] + words[: n % 7])} for n in range(80)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    knobs = SET | {"runs": str(tmp_path / "runs"), "model.init": "random", "data.max_length": 40}
    run = microplane.train(str(model), str(tmp_path / "text.jsonl"), method="full", set=knobs)
    assert run.metrics["after"]["loss"] < run.metrics["before"]["loss"]


def test_plain_text_is_measured_as_it_is_trained(tmp_path):
    """Each piece of it is a pair with a source, from which spans were taken out."""
    model = pair_folder(tmp_path / "model")
    lines = [{"text": f"the quick brown fox number {n} jumps over {n * n} dogs"} for n in range(30)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": str(tmp_path / "text.jsonl"), "max_length": 40}
    knobs = RunKnobs.model_validate({"model": {"name": str(model)}, "data": data, "eval": {"rows": 3}})
    measured = microplane.evaluate(knobs=knobs)
    assert measured["scores"]["loss"] > 0
    assert measured["prompts"][0].startswith("the quick brown fox number 0 ju")
    for prompt, target in zip(measured["prompts"], measured["targets"], strict=True):
        assert 0 < len(target) < len(prompt) < 40  # of 40 tokens some are sentinels, and one is the end


@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_denoising_goes_on_with_the_same_draws(objective, tmp_path):
    """Over several epochs, each with its own draws: the last checkpoint is taken away, and made again bit for bit."""
    model = pair_folder(tmp_path / "model")
    lines = [{"text": f"the quick brown fox number {n} jumps over {n * n} dogs"} for n in range(30)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    knobs = SET | {"runs": str(tmp_path / "runs"), "data.max_length": 40, "data.objective": objective}
    run = microplane.train(str(model), str(tmp_path / "text.jsonl"), method="full", set=knobs | {"train.patience": 0})
    log = (run.folder / "metrics.jsonl").read_bytes()
    assert max(json.loads(line).get("epoch", 0) for line in log.splitlines()) > 2
    shutil.rmtree(run.folder / "resume" / "step-00000012")
    weights = (run.folder / "adapter" / "model.safetensors").read_bytes()
    microplane.runs.train.resume(run.folder)
    assert (run.folder / "metrics.jsonl").read_bytes() == log
    assert (run.folder / "adapter" / "model.safetensors").read_bytes() == weights
