"""What is written through transformers: as its own `generate` writes it, with its own caches."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from microplane.config.knobs import GenerateKnobs
from microplane.data.tokenizers.load import load_tokenizer
from microplane.errors import notices_to
from microplane.inference.generate import generate
from microplane.models.external.together import Together
from microplane.models.external.writers import TransformersWriter
from microplane.models.files.load import load_model
from tests.foreign.writer_folders import PAIRED, WRITERS, save_writer

PROMPTS = [[5, 9, 200, 31], [7], [100, 101, 102, 103, 104, 105], [40, 41, 42, 43]]
WITHOUT = {
    "openai-gpt",
    "recurrent_gemma",
}  # transformers has no cache for the one, and keeps the other's in its layers
ALONE = {"rwkv", "minimax"}  # a row's states depend on the rows beside it


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("writers")
    return {name: save_writer(root / name, name) for name in WRITERS}


def widths_of(model: TransformersWriter) -> list[int]:
    """Filled with the number of tokens that each call of the model's decoder gets."""
    found: list[int] = []

    def note(module, given, named):
        ids = named.get("decoder_input_ids", named.get("input_ids"))
        if ids is not None:
            found.append(ids.shape[1])

    model._body.register_forward_pre_hook(note, with_kwargs=True)
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_it_writes_what_transformers_writes_row_by_row(folders, name):
    model = load_model(folders[name])
    assert isinstance(model, TransformersWriter)
    kind = AutoModelForSeq2SeqLM if name in PAIRED else AutoModelForCausalLM
    peer, told = kind.from_pretrained(folders[name]).eval(), []
    with notices_to(told.append):
        answers = generate(model, load_tokenizer(folders[name]), PROMPTS, GenerateKnobs(max_new_tokens=7), [])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        made = peer.generate(
            torch.tensor([prompt]), max_new_tokens=7, do_sample=False, eos_token_id=None, pad_token_id=0, num_beams=1,
            use_cache=name not in WITHOUT,
        )  # fmt: skip
        assert answer.ids == made[0, 1 if name in PAIRED else len(prompt) :].tolist()
    expected = None if name in WITHOUT else Together.ALONE if name in ALONE else Together.PADDED
    assert model.cached is expected
    wanted = {None: ["writes without a cache"], Together.ALONE: ["rows one by one"], Together.PADDED: []}[expected]
    assert len(told) == len(wanted)
    assert all(part in line for part, line in zip(wanted, told, strict=True))


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - WITHOUT))
def test_each_new_token_is_computed_alone(folders, name):
    model, tokenizer = load_model(folders[name]), load_tokenizer(folders[name])
    generate(model, tokenizer, PROMPTS[:1], GenerateKnobs(max_new_tokens=1), [])  # what is tried once is not counted
    widths = widths_of(model)
    generate(model, tokenizer, PROMPTS, GenerateKnobs(max_new_tokens=9), [])
    prompt = 1 if name in PAIRED else max(map(len, PROMPTS))
    rows = len(PROMPTS) if name in ALONE else 1
    assert max(widths) == prompt
    assert len(widths) == 9 * rows
    assert sum(width == 1 for width in widths) >= 8 * rows


@pytest.mark.parametrize("name", ["gptj", "olmo", "mamba2", "rwkv", "minimax", "lfm2", "plbart", "ministral"])
def test_beams_with_a_cache_are_those_without_one(folders, name):
    model, tokenizer = load_model(folders[name]), load_tokenizer(folders[name])
    knobs = GenerateKnobs(max_new_tokens=6, beams=3)
    found = generate(model, tokenizer, PROMPTS, knobs, [2])
    assert model.cached is not None
    model.cached = None
    assert [one.ids for one in found] == [one.ids for one in generate(model, tokenizer, PROMPTS, knobs, [2])]


def test_rows_that_end_leave_the_others_as_they_are(folders):
    model, tokenizer = load_model(folders["gptj"]), load_tokenizer(folders["gptj"])
    knobs = GenerateKnobs(max_new_tokens=12)
    whole = generate(model, tokenizer, PROMPTS, knobs, [])
    stop = whole[0].ids[2]
    found = generate(model, tokenizer, PROMPTS, knobs, [stop])
    assert any(one.stopped for one in found)
    for one, full in zip(found, whole, strict=True):
        end = full.ids.index(stop) if stop in full.ids else 12
        assert one.ids == full.ids[:end]


def test_a_cache_under_its_newer_name_is_kept(folders, monkeypatch):
    """transformers calls `cache` since 5.24 what was `past_key_values`; here a model of either version is called so."""
    model, tokenizer = load_model(folders["olmo"]), load_tokenizer(folders["olmo"])
    net, body, told = model.net, model._body, []
    if "past_key_values" in inspect.signature(body.forward).parameters:
        prepare, update, forward = (
            net.prepare_inputs_for_generation, net._update_model_kwargs_for_generation, body.forward
        )  # fmt: skip

        def renamed_inputs(ids, cache=None, **given):
            inputs = prepare(ids, past_key_values=cache, **given)
            return {"cache" if name == "past_key_values" else name: value for name, value in inputs.items()}

        def renamed_kept(output, given, **more):
            given = update(output, given, **more)
            return {"cache" if name == "past_key_values" else name: value for name, value in given.items()}

        def renamed_forward(input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None, **more):
            return forward(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
                use_cache=use_cache, **more,
            )  # fmt: skip

        monkeypatch.setattr(net, "prepare_inputs_for_generation", renamed_inputs)
        monkeypatch.setattr(net, "_update_model_kwargs_for_generation", renamed_kept)
        monkeypatch.setattr(body, "forward", renamed_forward)
    widths = widths_of(model)
    with notices_to(told.append):
        answers = generate(model, tokenizer, PROMPTS, GenerateKnobs(max_new_tokens=7), [])
    assert (model.cached, told) == (Together.PADDED, [])
    assert sum(width == 1 for width in widths) >= 6
    plain = generate(load_model(folders["olmo"]), tokenizer, PROMPTS, GenerateKnobs(max_new_tokens=7), [])
    assert [answer.ids for answer in answers] == [answer.ids for answer in plain]
