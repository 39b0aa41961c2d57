"""Models that cannot be opened, and tokenizers that do not belong to them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bad_input.kit import (
    BASE,
    Case,
    both,
    cut,
    edit,
    edit_tensors,
    evaluate,
    folder,
    generate,
    remove,
    rename,
    sets,
    train,
    write,
)
from tests.gguf_files import converted, write_gguf
from tests.tiny import LLAMA, tiny

WEIGHTS, UP = "model/model.safetensors", "model.layers.0.mlp.up_proj.weight"
TOKENS = {
    "ggml.model": "gpt2",
    "ggml.pre": "smollm",
    "ggml.tokens": [f"t{number}" for number in range(LLAMA["vocab_size"])],
    "ggml.merges": ["t 1"],
    "ggml.eos_token_id": 2,
}


def config(**fields):
    return edit("model/config.json", **fields)


def tensors(change):
    return edit_tensors(WEIGHTS, change)


def shards(here, keep=(1, 2), told=None):
    """The weights in two files with an index."""
    whole = load_file(here / WEIGHTS)
    (here / WEIGHTS).unlink()
    names, places = sorted(whole), {}
    for number, part in ((1, names[:5]), (2, names[5:])):
        file = f"model-0000{number}-of-00002.safetensors"
        places |= dict.fromkeys(part, file)
        if number in keep:
            save_file({name: whole[name] for name in part}, here / "model" / file)
    index = {"weight_map": places} if told is None else told
    (here / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


def gguf(here, size=None, tokens=TOKENS):
    """a.gguf, cut to `size` bytes."""
    model = tiny()
    state = {model.hf_names()[name]: tensor for name, tensor in model.state_dict().items()}
    path = write_gguf(here / "a.gguf", LLAMA, converted(LLAMA, state), tokens=tokens)
    path.write_bytes(path.read_bytes()[:size])


CASES = [
    Case("a near miss of a short name", train(model="smolm2"), ("'smolm2'", "Did you mean 'smollm2'?", ".gguf")),
    Case("a near miss of a folder", train(model="modle"), ("'modle'", "Did you mean 'model'?")),
    Case("an unknown name", train(model="gpt5"), ("'gpt5'", "Hub name such as org/model", "smollm2")),
    Case("a Hub model while offline", train(model="org/some-model"), ("org/some-model", "HF_HUB_OFFLINE")),
    Case("a missing .gguf", train(model="x.gguf"), ("'x.gguf'", ".gguf file")),
    Case("an empty folder", train(model="e"), ("folder e is not a model", "config.json"), folder("e")),
    Case("no config.json", train(), ("folder model is not a model", "config.json"), remove("model/config.json")),
    Case(
        "broken config.json",
        train(),
        ("model/config.json is not valid JSON", "column 6"),
        write("model/config.json", '{"a":'),
    ),
    Case(
        "config.json that is a list", train(), ("model/config.json", "object", "list"), write("model/config.json", "[]")
    ),
    Case(
        "an unknown architecture",
        train(),
        ("YolosModel is not supported", "llama, ", "gemma3_text"),
        config(architectures=["YolosModel"]),
    ),
    Case(
        "no architecture",
        train(),
        ("names none", "llama, "),
        edit("model/config.json", ("architectures", "model_type")),
    ),
    Case("a size that is text", train(), ("hidden_size = '32'", "whole number"), config(hidden_size="32")),
    Case(
        "heads that do not divide",
        train(),
        ("num_attention_heads = 3", "num_key_value_heads = 2"),
        config(num_attention_heads=3),
    ),
    Case("an unknown activation", train(), ("'tanhh'", "silu"), config(hidden_act="tanhh")),
    Case(
        "quantised weights", train(), ("quantised (gptq", ".gguf"), config(quantization_config={"quant_method": "gptq"})
    ),
    Case(
        "config and weights of other widths",
        train(),
        ("do not fit", "is (259, 32), expected (259, 64)"),
        config(hidden_size=64),
    ),
    Case("a missing tensor", train(), ("1 missing", UP), tensors(lambda t: t.pop(UP))),
    Case(
        "a tensor of a wrong shape",
        train(),
        ("1 wrong", UP, "(3, 3), expected (48, 32)"),
        tensors(lambda t: t.update({UP: torch.zeros(3, 3)})),
    ),
    Case(
        "a tensor of whole numbers",
        train(),
        (UP, "int32", "floating point"),
        tensors(lambda t: t.update({UP: t[UP].int()})),
    ),
    Case(
        "a tensor too many",
        train(),
        ("1 unexpected: foo.bar",),
        tensors(lambda t: t.update({"foo.bar": torch.zeros(2)})),
    ),
    Case("truncated safetensors", train(), (WEIGHTS, "5,000 bytes", "truncated"), cut(WEIGHTS, 5000)),
    Case("empty safetensors", train(), (WEIGHTS, "0 bytes", "truncated"), cut(WEIGHTS, 0)),
    Case("safetensors of rubbish", train(), (WEIGHTS, "is not safetensors"), write(WEIGHTS, b"\xff" * 100)),
    Case("no weights", train(), ("model has no weights", "model.safetensors"), remove(WEIGHTS)),
    Case(
        "a missing shard",
        train(),
        ("model lacks 1 of 2 files", "model-00002-of-00002.safetensors"),
        lambda here: shards(here, keep=(1,)),
    ),
    Case("an index without a map", train(), ("index.json", "weight_map"), lambda here: shards(here, told={})),
    Case(
        "pickled weights",
        train(),
        ("model/pytorch_model.bin", "pickle", "safe_serialization=True"),
        rename(WEIGHTS, "model/pytorch_model.bin"),
    ),
    Case("a pickle as the model", train(model="a.pt"), ("a.pt", "pickle", "model.safetensors"), write("a.pt", b"x")),
    Case("the weights file as the model", train(model=WEIGHTS), (WEIGHTS, "config.json")),
    Case("a data file as the model", train(model="rows.jsonl"), ("rows.jsonl is not a model", "config.json")),
    Case(
        "an adapter as the model",
        train(model=f"{BASE}/adapter"),
        ("is an adapter", "generate, eval and merge", "Its base is"),
    ),
    Case("a run as the model", train(model=BASE), ("is a run", "generate, eval and merge", "Its base is")),
    Case(
        "no GGUF inside",
        train(model="a.gguf"),
        ("a.gguf is not a GGUF file", "b'hell'"),
        write("a.gguf", b"hello" * 99),
    ),
    Case("an empty .gguf", train(model="a.gguf"), ("a.gguf is not a GGUF file",), write("a.gguf", b"")),
    Case(
        "a .gguf cut in its header", train(model="a.gguf"), ("a.gguf is cut off", "300"), lambda here: gguf(here, 300)
    ),
    Case(
        "a .gguf cut in its tensors",
        train(model="a.gguf"),
        ("a.gguf is cut off", "blk."),
        lambda here: gguf(here, 30_000),
    ),
    Case(
        "a .gguf without a tokenizer",
        train(model="a.gguf"),
        ("a.gguf", "tokenizer", "gpt2, llama"),
        lambda here: gguf(here, tokens={}),
    ),
    Case("no tokenizer", train(), ("model has no tokenizer", "tokenizer.json"), remove("model/tokenizer.json")),
    Case("a broken tokenizer", train(), ("model/tokenizer.json is damaged",), write("model/tokenizer.json", "{")),
    Case(
        "a broken tokenizer_config",
        train(),
        ("model/tokenizer_config.json is not valid JSON",),
        write("model/tokenizer_config.json", "{"),
    ),
    Case(
        "a broken generation_config",
        train(),
        ("model/generation_config.json is not valid JSON",),
        write("model/generation_config.json", "["),
    ),
    Case(
        "no end token",
        train(),
        ("names no end token", "eos_token"),
        both(write("model/tokenizer_config.json", "{}"), edit("model/config.json", ("eos_token_id",))),
    ),
    Case(
        "a broken chat template",
        train(),
        ("chat template is broken", "data.template=plain"),
        edit("model/tokenizer_config.json", chat_template="{% for %}"),
    ),
    Case(
        "a chat template that refuses",
        train(),
        ("refuses a conversation of user, assistant: not me", "data.template=plain"),
        edit("model/tokenizer_config.json", chat_template="{{ raise_exception('not me') }}"),
    ),
    Case(
        "chat without a template",
        train(*sets("data.template=chat")),
        ("no chat template", "data.template=plain"),
        edit("model/tokenizer_config.json", ("chat_template",)),
    ),
    Case(
        "a tokenizer larger than the model",
        train(),
        ("259 tokens", "embeddings for 100 only", "do not belong together"),
        both(config(vocab_size=100), tensors(lambda t: t.update({e: t[e][:100].clone() for e in t if "embed" in e}))),
    ),
    Case(
        "the same to generate",
        generate("hi"),
        ("259 tokens", "embeddings for 100 only"),
        both(config(vocab_size=100), tensors(lambda t: t.update({e: t[e][:100].clone() for e in t if "embed" in e}))),
    ),
    Case("a revision of a local model", train(*sets("model.revision=main")), ("'main'", "only for Hub names")),
    Case("an unknown user's home", train(model="~nosuchuser/x"), ("'~nosuchuser/x'", "home directory")),
    Case("a model to eval that is none", evaluate(model="gpt5"), ("'gpt5'", "smollm2")),
    Case("a model to show data with that is none", ["data", "rows.jsonl", "--model", "modle"], ("'modle'", "'model'")),
    Case("a model to generate with that is none", generate("hi", model="rows.jsonl"), ("rows.jsonl is not a model",)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_models(microplane, case):
    microplane.check(case)


def test_weights_that_are_not_numbers(microplane, here):
    edit_tensors(WEIGHTS, lambda t: t[UP].fill_(float("nan")))(here)
    told = microplane.refuses(*train("--name", "x"))
    assert "the loss of the untouched model model is nan" in told.error
    assert "Fetch the model again" in told.error
    assert json.loads((here / "runs/x/result.json").read_text())["error"] == told.error


def test_an_empty_name(microplane):
    microplane.check(Case("an empty name", train(model=""), ("''", "smollm2")))


def test_an_index_that_names_no_files(microplane):
    index = {"weight_map": {"a": 3}}
    says = ("model.safetensors.index.json", "3")
    microplane.check(Case("an index of numbers", train(), says, lambda here: shards(here, told=index)))


def test_an_activation_that_is_a_list(microplane):
    microplane.check(Case("a list for a name", train(), ("hidden_act", "['silu']"), config(hidden_act=["silu"])))


def test_a_tokenizer_config_of_wrong_types(microplane):
    spoil = edit("model/tokenizer_config.json", eos_token=3)
    microplane.check(Case("eos that is a number", train(), ("tokenizer_config.json", "eos_token", "3"), spoil))


def test_a_gguf_of_ten_bytes(microplane):
    microplane.check(Case("ten bytes", train(model="a.gguf"), ("a.gguf is cut off",), lambda here: gguf(here, 10)))
