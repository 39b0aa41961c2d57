"""LoRA-FA: only B trains, and its gradient is LoRA's. That no inputs are kept is tested in test_nn.py."""

from __future__ import annotations

import torch

from microplane.methods.method import trainable
from tests.methods.kit import attached, layers, loss, shake


def test_only_b_trains_and_its_gradient_is_that_of_lora():
    _, model = attached(name="lora-fa", rank=3)
    _, lora = attached(name="lora", rank=3)
    assert trainable(model)
    assert all(name.endswith("lora_B") for name in trainable(model))
    for tuned in (model, lora):
        for layer in layers(tuned).values():
            layer.lora_B.data.copy_(torch.linspace(-0.1, 0.1, layer.lora_B.numel()).view_as(layer.lora_B))
        loss(tuned).backward()
    for ours, plain in zip(layers(model).values(), layers(lora).values(), strict=True):
        torch.testing.assert_close(ours.lora_B.grad, plain.lora_B.grad)
        assert ours.lora_A.grad is None


def test_a_stays_through_saving_and_loading():
    method, model = attached(name="lora-fa", rank=3)
    shake(model)
    other = attached(name="lora-fa", rank=3)
    for layer in layers(other[1]).values():
        layer.lora_A.data.zero_()
    other[0].load(other[1], method.state(model))
    for ours, loaded in zip(layers(model).values(), layers(other[1]).values(), strict=True):
        assert torch.equal(ours.lora_A, loaded.lora_A)
        assert not loaded.lora_A.requires_grad
