"""Adapters cross over: peft opens ours and we open peft's, with equal outputs, and equal gradients at equal weights."""

from __future__ import annotations

import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from microplane.checkpoints.adapter import read_method, save_adapter
from microplane.errors import AdapterError
from microplane.inference.pipeline import load
from microplane.methods import make_method
from microplane.methods.method import trainable
from microplane.models.files.load import load_model
from tests.parity.peft_kit import (
    PEFT_NAMES,
    adapted_reference,
    assert_equal,
    gradients,
    named,
    ours,
    reference,
    theirs,
)
from tests.tiny import save_tiny_folder

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("olmo2", "granite")]
FAMILIES = ["llama-tied", "llama-untied", "qwen2", "qwen3", "gemma2", *SLOW]
KNOBS = [
    {"name": "lora", "rank": 4},
    {"name": "lora", "rank": 8, "alpha": 4, "targets": ["q", "v"]},
    {"name": "rslora", "rank": 3, "targets": ["down", "o"]},
    {"name": "lora+", "rank": 2},
    {"name": "dora", "rank": 3},
    {"name": "ia3"},
    {"name": "ia3", "targets": ["q", "up"], "feedforward": []},
    {"name": "vera", "rank": 6},
    {"name": "vera", "rank": 6, "targets": ["q", "down"], "save_projections": False, "seed": 4},
]


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path):
    return save_tiny_folder(tmp_path / "base", request.param)


def peft_config(knobs):
    targets = [PEFT_NAMES[role] for role in knobs.get("targets", ())] or list(PEFT_NAMES.values())
    if knobs["name"] == "ia3":
        inputs = ["down_proj"] if "feedforward" not in knobs else []
        targets = [PEFT_NAMES[role] for role in knobs.get("targets", ("k", "v"))] + inputs
        return peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=inputs)
    if knobs["name"] == "vera":
        return peft.VeraConfig(
            task_type="CAUSAL_LM",
            r=knobs["rank"],
            target_modules=targets,
            projection_prng_key=knobs.get("seed", 0),
            save_projection=knobs.get("save_projections", True),
        )
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=knobs["rank"],
        lora_alpha=knobs.get("alpha", 16),
        use_rslora=knobs["name"] == "rslora",
        use_dora=knobs["name"] == "dora",
        target_modules=targets,
    )


def shake(parameters):
    """Values far from where training starts; magnitudes and scales stay near 1."""
    for parameter in parameters:
        parameter.data.add_(torch.randn_like(parameter) * 0.1)


def attached(base, method):
    model = load_model(base)
    method.attach(model)
    shake(trainable(model).values())
    return model


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_peft_opens_ours_with_equal_outputs_and_gradients(base, tmp_path, knobs):
    method = make_method(knobs)
    model = attached(base, method)
    save_adapter(tmp_path / "adapter", model, method, {"base": str(base)})
    opened = peft.PeftModel.from_pretrained(reference(base), tmp_path / "adapter", is_trainable=True).eval()
    mine, its = ours(model), theirs(opened)
    assert_equal(mine, its)
    untouched = theirs(reference(base))
    assert not torch.allclose(untouched[0], mine[0], atol=1e-2)  # the adapter does something
    gradients(mine)
    gradients(its)
    state, parameters = method.state(model), named(opened)
    assert parameters.keys() == {name for name, tensor in state.items() if tensor.requires_grad}
    for name, parameter in parameters.items():
        size = parameter.grad.abs().max().clamp_min(1)
        torch.testing.assert_close(state[name].grad / size, parameter.grad / size, atol=1e-5, rtol=1e-5)


def test_veras_matrices_are_pefts_to_the_bit_from_the_same_seed(base):
    method = make_method({"name": "vera", "rank": 6, "seed": 4})
    state = method.state(attached(base, method))
    model = adapted_reference(base, peft_config({"name": "vera", "rank": 6, "seed": 4}))
    assert torch.equal(state["base_model.vera_A"], model.base_model.vera_A["default"])
    assert torch.equal(state["base_model.vera_B"], model.base_model.vera_B["default"])


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_we_open_pefts(base, tmp_path, knobs):
    model = adapted_reference(base, peft_config(knobs))
    shake(named(model).values())
    model.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", dtype="float32")
    assert loaded.path == base
    assert loaded.method.name == knobs["name"].removesuffix("+")
    assert_equal(ours(loaded.model), theirs(model))


def test_dora_with_rsloras_scale_is_read_as_the_alpha_that_gives_it(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, use_dora=True, use_rslora=True, target_modules=["q_proj"])
    model = adapted_reference(base, config)
    shake(named(model).values())
    model.save_pretrained(tmp_path / "adapter")
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), theirs(model))


def test_what_of_peft_cannot_be_read_is_named(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    for knobs, message in (
        ({"lora_bias": True}, "lora_bias = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        (
            {"trainable_token_indices": [3, 4]},
            r"indices = \[3, 4\] is not supported.* Merge it with peft",
        ),
    ):
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **knobs)
        adapted_reference(base, config).save_pretrained(tmp_path / "adapter")
        with pytest.raises(AdapterError, match=message):
            read_method(tmp_path / "adapter")
    loha = peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["k_proj"])
    adapted_reference(base, loha).save_pretrained(tmp_path / "loha")
    with pytest.raises(AdapterError, match="peft's type 'LOHA'; .*LORA.* can be read"):
        read_method(tmp_path / "loha")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_what_is_refused_opens_by_the_way_round_that_is_told(tmp_path, bias):
    base = save_tiny_folder(tmp_path / "base", "qwen2")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], bias=bias)
    model = adapted_reference(base, config)
    shake({name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}.values())
    model.save_pretrained(tmp_path / "adapter")
    expected = theirs(model)
    with pytest.raises(AdapterError, match=rf"bias = '{bias}' .* only 'none' is\. Merge it .*merge_and_unload"):
        load(tmp_path / "adapter")
    again = transformers.AutoModelForCausalLM.from_pretrained(base)
    merged = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload()
    shutil.copytree(base, tmp_path / "merged")
    merged.save_pretrained(tmp_path / "merged")
    assert_equal(ours(load(tmp_path / "merged", dtype="float32").model), expected)


def test_an_adapter_in_a_pickle_is_refused_and_peft_converts_it(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    model = adapted_reference(base, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    shake(named(model).values())
    model.save_pretrained(tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(state, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin are a pickle, which can run any code .* peft converts"):
        load(tmp_path / "adapter")
    again = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.PeftModel.from_pretrained(again, tmp_path / "adapter").save_pretrained(tmp_path / "adapter")
    assert_equal(ours(load(tmp_path / "adapter", dtype="float32").model), theirs(model))
