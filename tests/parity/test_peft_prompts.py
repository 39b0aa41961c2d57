"""Prompt and prefix tuning against peft on decoders: outputs and gradients at equal weights, and both ways of files."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from microplane.checkpoints.adapter import read_method, save_adapter
from microplane.errors import AdapterError
from microplane.exports.ways import ways
from microplane.inference.pipeline import load
from microplane.methods import make_method
from microplane.models.files.load import load_model
from microplane.models.heads import task_scores
from microplane.nn.rows import Rows
from tests.adapters.test_leaving import folder_of
from tests.adapters.there import ours as said_here
from tests.adapters.there import saved
from tests.methods.kit import shake
from tests.parity.peft_kit import IDS, adapted_reference, assert_equal, gradients, ours, reference
from tests.tiny import save_tiny_folder

P = 4
CASES = [
    *(("prompt", family) for family in ("llama-tied", "qwen2", "qwen3", "gemma2", "granite")),
    *(("prefix", family) for family in ("llama-tied", "llama-untied", "qwen2", "qwen3")),
]
CONFIGS = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}


@pytest.fixture(params=CASES, ids="-".join)
def case(request, tmp_path):
    name, family = request.param
    return name, save_tiny_folder(tmp_path / "base", family)


def theirs(model):
    """peft gives the states of a prompt too, but not those of a prefix."""
    return [model(torch.tensor([row])).logits[0][-len(row) :] for row in IDS]


def test_peft_opens_ours_with_equal_outputs_and_gradients(case, tmp_path):
    name, base = case
    method, model = make_method({"name": name, "length": P}), load_model(base)
    method.attach(model)
    shake(model, 0.5)
    save_adapter(tmp_path / "adapter", model, method, {"base": str(base)})
    opened = peft.PeftModel.from_pretrained(reference(base), tmp_path / "adapter").eval()
    opened.prompt_encoder.default.embedding.weight.requires_grad_(True)
    mine, its = ours(model), theirs(opened)
    assert_equal(mine, its)
    assert not torch.allclose(mine[0], ours(load_model(base))[0], atol=1e-2)
    state = method.state(model)["prompt_embeddings"]
    whole = torch.autograd.grad(scalar(mine), list(model_leaves(model)), retain_graph=True)
    gradients(its)
    wanted = opened.prompt_encoder.default.embedding.weight.grad
    got = as_peft(model, dict(zip(model_leaves(model), whole, strict=True)))
    torch.testing.assert_close(got / wanted.abs().max(), wanted / wanted.abs().max(), atol=1e-5, rtol=1e-5)
    assert state.shape == wanted.shape


def scalar(logits):
    """What `gradients` goes backward from."""
    generator = torch.Generator().manual_seed(3)
    return sum((row * torch.randn(row.shape, generator=generator)).sum() for row in logits)


def model_leaves(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def as_peft(model, grads):
    """Gradients of ours in the shape of peft's one tensor."""
    if model.prompt_socket.length:
        return grads[model.prompt_socket.vectors]
    pairs = [(b.attention.prefix.keys, b.attention.prefix.values) for b in model.layers]
    return torch.cat([grads[x].transpose(0, 1).flatten(1) for pair in pairs for x in pair], 1)


def test_we_open_pefts(case, tmp_path):
    name, base = case
    model = adapted_reference(base, CONFIGS[name](task_type="CAUSAL_LM", num_virtual_tokens=P))
    model.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", dtype="float32")
    assert (loaded.method.name, loaded.method.length) == (name, P)
    assert_equal(ours(loaded.model), theirs(model))


def test_of_a_prefix_made_by_an_mlp_the_outcome_is_read(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=8
    )
    model = adapted_reference(base, config)
    model.save_pretrained(tmp_path / "adapter")
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), theirs(model))


def test_what_peft_has_no_room_for_is_kept_in_our_own_format(tmp_path):
    prefix = {"name": "prefix"}
    for knobs, family in (({"name": "prompt", "norms": True}, "llama-tied"), (prefix, "gemma2"), (prefix, "gpt2")):
        base = save_tiny_folder(tmp_path / f"base-{family}", family)
        model, method = load_model(base), make_method(knobs)
        method.attach(model)
        save_adapter(tmp_path / family, model, method, {"base": str(base)})
        assert not (tmp_path / family / "adapter_config.json").exists()
        assert "peft" not in ways(model, method)
        assert read_method(tmp_path / family)[0] == method


@pytest.mark.parametrize("family", ["starcoder2", "gpt2"])
def test_a_prefix_of_pefts_that_would_be_another_function_here_is_refused(family, tmp_path):
    """In a window it goes out of sight there, and embedded positions begin behind it."""
    base = save_tiny_folder(tmp_path / "base", family)
    adapted_reference(base, CONFIGS["prefix"](task_type="CAUSAL_LM", num_virtual_tokens=P)).save_pretrained(
        tmp_path / "a"
    )
    with pytest.raises(AdapterError, match="prefix: peft computes another function on"):
        load(tmp_path / "a", dtype="float32")


def test_two_prompts_of_one_adapter_are_refused(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, num_transformer_submodules=2)
    adapted_reference(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="num_transformer_submodules = 2 is not supported"):
        read_method(tmp_path / "adapter")


LABELLED = {"SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification"}


def labelled(base, folder, kind, task):
    """An adapter of peft's with a head, both far from where they start."""
    model = getattr(transformers, LABELLED[task]).from_pretrained(base, num_labels=3)
    adapted = peft.get_peft_model(model, CONFIGS[kind](task_type=task, num_virtual_tokens=P)).eval()
    shake(adapted, 0.3)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize(
    ("family", "kind", "task"),
    [
        ("bert", "prompt", "TOKEN_CLS"),
        ("llama-untied", "prompt", "SEQ_CLS"),
        ("llama-untied", "prefix", "SEQ_CLS"),
        ("qwen3", "prefix", "TOKEN_CLS"),
    ],
)
def test_we_open_pefts_with_a_head(family, kind, task, tmp_path):
    theirs = labelled(folder_of(family, tmp_path / "base"), tmp_path / "adapter", kind, task)
    model = load(tmp_path / "adapter", dtype="float32").model
    for row in IDS[:2]:
        ids = [one % 90 + 5 for one in row]
        with torch.no_grad():
            wanted = theirs(torch.tensor([ids])).logits[0]
        wanted = wanted[-len(ids) :] if task == "TOKEN_CLS" else wanted
        torch.testing.assert_close(task_scores(model, Rows.of([ids])).squeeze(0), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_label_that_peft_reads_from_the_prompt_too_is_refused(family, tmp_path):
    """An encoder's class pools the first place, or the mean of all, and there stand the prompt's vectors."""
    labelled(folder_of(family, tmp_path / "base"), tmp_path / "adapter", "prompt", "SEQ_CLS")
    with pytest.raises(AdapterError, match=r"prompt: peft computes another function on \w+ for labels; train it here"):
        load(tmp_path / "adapter", dtype="float32")


@pytest.mark.parametrize("family", ["marian", "pegasus", "t5gemma"])
def test_a_prompt_where_peft_asks_with_embeddings_of_another_size_is_refused(family, tmp_path):
    path = saved(folder_of(family, tmp_path / "base"), tmp_path / "adapter", {"name": "prompt", "length": P})
    told = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": P}
    (path / "method.json").unlink()
    (path / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": str(tmp_path / "base")}))
    with pytest.raises(AdapterError, match="prompt: peft computes another function on"):
        load(path, dtype="float32")


def test_a_head_under_the_name_that_it_had_before_is_read(tmp_path):
    path = saved(folder_of("bert", tmp_path / "base"), tmp_path / "adapter", {"name": "prompt"}, "tokens")
    wanted = said_here(load(path, dtype="float32").model)
    state = load_file(path / "adapter_model.safetensors")
    before = {name.replace("base_model.", "base_model.model."): tensor for name, tensor in state.items()}
    assert before.keys() - state.keys() == {f"base_model.model.classifier.{kind}" for kind in ("weight", "bias")}
    save_file(before, path / "adapter_model.safetensors", {"format": "pt"})
    assert_equal(said_here(load(path, dtype="float32").model), wanted)


@pytest.mark.parametrize(
    ("family", "name", "task", "told", "parts"),
    [
        ("bert", "prompt", "tokens", "TOKEN_CLS", ["classifier"]),
        ("llama-untied", "prefix", "classification", "SEQ_CLS", ["score"]),
    ],
)
def test_peft_is_told_of_the_head(family, name, task, told, parts, tmp_path):
    path = saved(folder_of(family, tmp_path / "base"), tmp_path / "adapter", {"name": name}, task)
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == (told, parts)
