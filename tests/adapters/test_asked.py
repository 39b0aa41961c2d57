"""How a run is asked stands in no file of other tools', and is told wherever it leaves."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

import microplane
from microplane.adapters.asked import asked_as
from microplane.adapters.merge import merge
from microplane.config.knobs import GenerateKnobs
from microplane.exports.export import export
from microplane.inference.pipeline import load
from tests.adapters.test_leaving import folder_of as any_folder
from tests.adapters.there import saved
from tests.exports.kit import adapter_of, folder_of
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import CHATML

DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ 'You are small.\n' }}{% endif %}" + CHATML
SAID = ("had the system message", "an empty system message", "prompts began with", "without the chat template",
        "continue text")  # fmt: skip


@pytest.mark.parametrize(
    ("about", "said", "card"),
    [
        ({"system": "Be short.", "prefix": "As JSON: "}, {0, 2}, "`Be short.`\n- each prompt begins with `As JSON:`"),
        ({"system": ""}, {1}, "- with an empty system message"),
        ({"template": "plain"}, {3}, None),
        ({"template": "plain", "frame": ["", ""]}, {3, 4}, "- text, continued as it stands"),
        ({"template": "chat", "frame": ["<|im_start|>user\n", "<|im_end|>\n"]}, set(), None),
        ({}, set(), None),
    ],
    ids=["system and prefix", "empty system", "plain", "text", "text in turns", "nothing"],
)  # fmt: skip
def test_what_belongs_around_a_question_is_told_and_stands_in_the_card(about, said, card, tmp_path):
    run = adapter_of(folder_of(tmp_path / "base", template=DEFAULT), tmp_path / "adapter", about=about)
    lines = [*merge(run, tmp_path / "merged").notices]
    assert {n for n, part in enumerate(SAID) if any(part in line for line in lines)} == said
    text = (tmp_path / "merged" / "README.md").read_text()
    assert ("## How it is asked" in text) is (card is not None)
    assert card is None or card in text


def test_an_empty_system_message_that_changes_nothing_is_not_told(tmp_path):
    run = adapter_of(
        folder_of(tmp_path / "base", template=CHATML), tmp_path / "a", about={"system": "", "template": "plain"}
    )
    assert not any("empty system" in line for line in merge(run, tmp_path / "merged").notices)


def test_the_beginning_of_an_encoder_decoders_prompts_is_told(tmp_path):
    run = adapter_of(pair_folder(tmp_path / "base"), tmp_path / "adapter", about={"prefix": "Translate: "})
    assert list(asked_as(load(run))) == ["all its prompts began with 'Translate: ': put it before each question"]


def test_an_adapter_for_peft_is_told_of_too(tmp_path, monkeypatch):
    monkeypatch.setattr("microplane.exports.peft.usable", lambda package: False)
    run = adapter_of(folder_of(tmp_path / "base"), tmp_path / "adapter", about={"prefix": "As JSON: "})
    assert any("prompts began with" in line for line in export(run, tmp_path / "out", "peft").lines)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config.json": {"eos_token_id": 0}}, [2, 0]),
        ({"generation_config.json": {"eos_token_id": [0]}, "config.json": {"eos_token_id": 2}}, [2, 0]),
        ({"config.json": {}}, [2]),
        ({"generation_config.json": {"temperature": 0.3}, "config.json": {"eos_token_id": 2}}, [2]),
        ({"config.json": {"eos_token_id": 2}}, None),
        ({"generation_config.json": {"eos_token_id": [1, 2]}, "config.json": {}}, None),
    ],
    ids=["another", "another beside a stale one", "none", "none beside a stale one", "its own", "several"],
)
def test_stops_that_the_base_does_not_tell_are_said_with_an_adapter_for_peft(files, told, tmp_path):
    """peft generates by the base's own files alone: without being told it would run on behind the answer's end."""
    base = folder_of(tmp_path / "base", template=CHATML)
    fields = json.loads((base / "config.json").read_text())
    fields.pop("eos_token_id", None)
    (base / "config.json").write_text(json.dumps(fields | files["config.json"]))
    if "generation_config.json" in files:
        (base / "generation_config.json").write_text(json.dumps(files["generation_config.json"]))
    rows = [{"prompt": f"say {'abc'[n % 3]}", "completion": "abc"[n % 3]} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"train.steps": 40, "train.lr": 1e-2, "model.dtype": "float32", "eval.rows": 0, "runs": tmp_path / "runs"}
    run = microplane.train(base, tmp_path / "rows.jsonl", method="lora", set=sets)
    call = f"generate(..., eos_token_id={told})" if told else "eos_token_id="
    assert (call in ModelCard.load(run.folder / "adapter" / "README.md").text) is (told is not None)
    exported = export(run.folder, tmp_path / "out", "peft")
    assert any(call in line for line in exported.lines) is (told is not None)
    ours = microplane.load(run.folder, "float32")
    [wanted] = ours.answers(["say a"])
    assert wanted.stopped
    there = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    there, prompt = peft.PeftModel.from_pretrained(there, tmp_path / "out").eval(), torch.tensor([ours.prompt("say a")])
    given = {} if told is None else {"eos_token_id": told}
    [said] = there.generate(input_ids=prompt, max_new_tokens=9, do_sample=False, **given).tolist()
    assert said[prompt.shape[1] :] == [*wanted.ids, 2]
    if told is not None:
        [said] = there.generate(input_ids=prompt, max_new_tokens=9, do_sample=False).tolist()
        assert len(said) == prompt.shape[1] + 9  # what users meet who are not told


@pytest.mark.parametrize(
    ("family", "settings", "told"),
    [
        ("qwen2", {"do_sample": True, "temperature": 0.7, "top_k": 20}, {"do_sample": False}),
        ("qwen2", {"repetition_penalty": 90.0, "temperature": 0.7}, {"repetition_penalty": 1.0}),
        ("qwen2", {"bad_words_ids": [[40], [50], [60]], "suppress_tokens": [*range(90, 200)]},
         {"bad_words_ids": None, "suppress_tokens": None}),
        ("t5", {"num_beams": 4, "no_repeat_ngram_size": 1, "forced_bos_token_id": 9},
         {"num_beams": 1, "no_repeat_ngram_size": 0, "forced_bos_token_id": None}),
        ("bart", {"min_length": 7, "forced_bos_token_id": 9, "no_repeat_ngram_size": 1},
         {"no_repeat_ngram_size": 0, "min_length": 0}),
        ("bart", {"forced_bos_token_id": 9, "bad_words_ids": [[40]], "num_beams": 1, "length_penalty": 2.0}, {}),
        ("qwen2", {"temperature": 0.7, "repetition_penalty": 1.0, "top_p": 0.9}, {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_base_whose_settings_have_transformers_write_otherwise_is_said(family, settings, told, file, tmp_path):
    """With the call that is told, it writes there what it writes here."""
    base = any_folder(family, tmp_path / "base")
    end = 2 if family == "qwen2" else 1
    fields = json.loads((base / "config.json").read_text()) | {"eos_token_id": end}
    told_beside = {name: fields[name] for name in ("decoder_start_token_id", "pad_token_id") if name in fields}
    (base / "config.json").write_text(json.dumps(fields | (settings if file == "config.json" else {})))
    if file == "generation_config.json":
        (base / file).write_text(json.dumps(settings | told_beside | {"eos_token_id": end}))
    run = saved(base, tmp_path / "adapter", {"name": "lora"})
    call = "generate(..., " + ", ".join(f"{name}={value!r}" for name, value in told.items())
    merged = merge(run, tmp_path / "merged")
    exported = export(run, tmp_path / "out", "peft")
    for lines in (merged.notices, exported.lines):
        assert any("as it writes" in line for line in lines) is bool(told)
        assert not told or any(call in line for line in lines)
    ours = load(run, dtype="float32")
    wanted = ours.answers(["say a"], GenerateKnobs(max_new_tokens=24))[0].ids
    kind = transformers.AutoModelForCausalLM if family == "qwen2" else transformers.AutoModelForSeq2SeqLM
    there, prompt = kind.from_pretrained(tmp_path / "merged"), torch.tensor([ours.prompt("say a")])
    start = prompt.shape[1] if family == "qwen2" else 1
    said, plain = (
        there.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, **given)[0, start:].tolist()
        for given in ({}, told)
    )
    assert plain[: len(wanted)] == wanted
    assert (said == plain) is (not told) or "do_sample" in told
    assert "10 of 10 greedy continuations are the same" in "".join(exported.lines)


@torch.no_grad()
def test_prompts_of_a_decoder_are_said_to_be_asked_alone_in_peft(tmp_path):
    """Which puts them before the padding of a row, as far from its text as that is long."""
    base = folder_of(tmp_path / "base")
    run = adapter_of(base, tmp_path / "adapter", "prompt")
    exported = export(run, tmp_path / "out", "peft")
    assert any("ask it one row at a time there" in line for line in exported.lines)
    assert "ask it one row at a time there" in (tmp_path / "out" / "README.md").read_text()
    plain = export(adapter_of(base, tmp_path / "lora", rank=2), tmp_path / "plain", "peft")
    assert not any("one row at a time" in line for line in plain.lines)
    there = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), run).eval()
    row, pads = [5, 9, 6, 31], [0] * 6
    wanted = there(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, 4)).logits[0, -4:]
    for ids, mask, place, alike in (
        (row + pads, [1] * 4 + [0] * 6, slice(-10, -6), True),
        (pads + row, [0] * 6 + [1] * 4, slice(-4, None), False),
    ):
        found = there(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits[0, place]
        assert torch.allclose(found, wanted, atol=1e-4) is alike
