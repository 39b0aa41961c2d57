"""GPT-2's Conv1D keeps its weight as (in, out): parity with peft, outputs and gradients, and files both ways."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers.pytorch_utils import Conv1D

import microplane
from tests.foreign.kit import gpt2
from tests.parity.peft_kit import named

IDS = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(0))
TARGETS = ["c_attn", "c_fc", "mlp.c_proj"]
CASES = {
    "lora": ({"rank": 4, "alpha": 8}, peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, fan_in_fan_out=True)),
    "dora": (
        {"rank": 4, "alpha": 8},
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, fan_in_fan_out=True, use_dora=True),
    ),
    "ia3": (
        {"targets": ["c_attn"], "feedforward": ["mlp.c_proj"]},
        peft.IA3Config(
            target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
        ),
    ),
    "vera": (
        {"rank": 4, "targets": ["c_attn"]},
        peft.VeraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, d_initial=0.1),
    ),
}


@pytest.fixture(params=CASES)
def pair(request):
    """Ours and peft's with the same random adapters."""
    knobs, config = CASES[request.param]
    ours = microplane.attach(gpt2(), {"name": request.param, "targets": TARGETS, **knobs})
    theirs = peft.get_peft_model(gpt2(), config).eval()
    torch.manual_seed(1)
    others = named(theirs)
    with torch.no_grad():
        for name, tensor in ours.state().items():
            if tensor.requires_grad:
                tensor.add_(0.1 * torch.randn_like(tensor))
                others[name].copy_(tensor)
    return ours, theirs, others


def test_outputs_and_gradients(pair):
    ours, theirs, others = pair
    mine, other = ours.model(IDS, labels=IDS), theirs(IDS, labels=IDS)
    torch.testing.assert_close(mine.logits, other.logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mine.logits, gpt2()(IDS).logits, atol=1e-2)
    mine.loss.backward()
    other.loss.backward()
    compared = 0
    for name, tensor in ours.state().items():
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, others[name].grad, atol=1e-5, rtol=1e-5)
            compared += 1
    assert compared == len(others) == len(ours.trainable())


def test_files_both_ways(pair, tmp_path):
    ours, theirs, _ = pair
    ours.save(tmp_path / "ours")
    opened = peft.PeftModel.from_pretrained(gpt2(), tmp_path / "ours")
    torch.testing.assert_close(opened(IDS).logits, ours.model(IDS).logits, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = microplane.attach_saved(gpt2(), tmp_path / "theirs")
    torch.testing.assert_close(again.model(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-5)


def test_merged_it_is_a_conv1d_again(pair):
    ours, theirs, _ = pair
    before = ours.model(IDS).logits
    merged = ours.merge()
    assert isinstance(merged.transformer.h[0].attn.c_attn, Conv1D)
    plain = gpt2()
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(plain(IDS).logits, before, atol=1e-5, rtol=1e-5)
    merged_theirs = theirs.merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, merged_theirs[name], atol=1e-5, rtol=1e-5)
