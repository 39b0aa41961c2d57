"""Adapters cross over: peft opens ours and we open peft's, with equal logits."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers

from microplane.errors import AdapterError
from microplane.loading import load
from microplane.methods import make_method
from microplane.models.load import load_model
from microplane.nn.rows import Rows
from microplane.training.checkpoint import read_method, save_adapter
from tests.tiny import save_tiny_folder

IDS = [[5, 9, 77, 31, 40, 2, 8], [200, 3, 90], [17] * 20]
FAMILIES = ("llama-tied", "llama-untied", "qwen2", "qwen3", "gemma2")
KNOBS = [
    {"rank": 4},
    {"rank": 8, "alpha": 4, "targets": ["q", "v"]},
    {"rank": 3, "rslora": True, "targets": ["down", "o"]},
]


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path):
    return save_tiny_folder(tmp_path / "base", request.param)


def ours(model):
    with torch.no_grad():
        return [model.logits(model(Rows.of([row]))) for row in IDS]


def theirs(model):
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0] for row in IDS]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def reference(base):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_peft_opens_ours(base, tmp_path, knobs):
    method = make_method({"name": "lora", **knobs})
    model = load_model(base)
    method.attach(model)
    for tensor in method.state(model).values():
        tensor.data.normal_(0, 0.3)
    save_adapter(tmp_path / "adapter", model, method, {"base": str(base)})
    untouched = theirs(reference(base))
    opened = peft.PeftModel.from_pretrained(reference(base), tmp_path / "adapter").eval()
    assert_equal(theirs(opened), ours(model))
    assert not torch.allclose(untouched[0], theirs(opened)[0], atol=1e-2)  # the adapter does something


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_we_open_pefts(base, tmp_path, knobs):
    roles = {"q": "q_proj", "v": "v_proj", "o": "o_proj", "down": "down_proj"}
    targets = [roles[role] for role in knobs["targets"]] if "targets" in knobs else "all-linear"
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=knobs["rank"],
        lora_alpha=knobs.get("alpha", 16),
        use_rslora=knobs.get("rslora", False),
        target_modules=targets,
    )
    model = peft.get_peft_model(reference(base), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", dtype="float32")
    assert loaded.path == base
    assert_equal(ours(loaded.model), theirs(model))


def test_what_of_peft_cannot_be_read_is_named(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    for knobs, message in (
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern = {'q_proj': 3} is not supported"),
    ):
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **knobs)
        peft.get_peft_model(reference(base), config).save_pretrained(tmp_path / "adapter")
        with pytest.raises(AdapterError, match=message):
            read_method(tmp_path / "adapter")
    ia3 = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    peft.get_peft_model(reference(base), ia3).save_pretrained(tmp_path / "ia3")
    with pytest.raises(AdapterError, match="peft's type 'IA3'; LORA is what can be read"):
        read_method(tmp_path / "ia3")
