"""DoRA's invariants: lengths of rows, what gradients see, dropout on the change only."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from microplane.methods.method import trainable_parameters
from tests.methods.kit import DATA, attached, layers, loss, shake
from tests.tiny import logits


@pytest.mark.parametrize("start", ["zero", "pissa"])
def test_row_lengths_of_the_new_weight_are_the_magnitudes(start):
    _, model = attached("qwen2", name="dora", rank=3, start=start, exact=True)
    for layer in layers(model).values():
        torch.testing.assert_close(layer.lora_magnitude_vector, layer.base.weight.norm(dim=1))
    shake(model)
    for layer in layers(model).values():
        torch.testing.assert_close(layer.merged().weight.norm(dim=1), layer.lora_magnitude_vector.abs())


def test_merged_equals_unmerged_in_float64():
    method, model = attached("qwen2", name="dora", rank=3, exact=True)
    shake(model)
    before = logits(model, DATA)
    method.merge(model)
    torch.testing.assert_close(logits(model, DATA), before, atol=1e-10, rtol=1e-10)


def test_the_gradient_takes_the_length_for_a_constant():
    _, model = attached(name="dora", rank=3, targets=["q"], exact=True)
    shake(model)
    layer = model.layers[0].attention.q
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    layer(x).square().sum().backward()
    A, B, m = (p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector))
    changed = layer.base.weight + layer.scale * B @ A
    F.linear(x, (m / changed.norm(dim=1).detach()).unsqueeze(1) * changed).square().sum().backward()
    for ours, plain in ((layer.lora_A, A), (layer.lora_B, B), (layer.lora_magnitude_vector, m)):
        torch.testing.assert_close(ours.grad, plain.grad)


def test_dropout_falls_on_the_change_only():
    """At first there is no change, so nothing is dropped; later the mean over masks is what eval mode computes."""
    _, model = attached("qwen2", name="dora", rank=3, dropout=0.4, exact=True)
    layer = model.layers[0].attention.q.train()
    x = torch.randn(2, layer.in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.base(x))
    shake(model)
    with torch.no_grad():
        many = layer(x.repeat(20000, 1)).view(20000, *x.shape[:1], -1)
        error = many.std(0) / 20000**0.5
        assert ((many.mean(0) - layer.eval()(x)).abs() < 5 * error).all()


def test_remembered_lengths_follow_the_factors():
    method, model = attached(name="dora", rank=3)
    before = logits(model, DATA)
    shake(model, 0.3)
    after = logits(model, DATA)
    assert not torch.equal(before, after)
    state = {name: tensor.clone() for name, tensor in method.state(model).items()}
    method.load(model, {name: tensor * 1.1 for name, tensor in state.items()})
    assert not torch.equal(after, logits(model, DATA))
    method.load(model, state)
    assert torch.equal(after, logits(model, DATA))
    optimizer = torch.optim.AdamW(method.param_groups(model, 1e-2), fused=True)
    model.train()
    loss(model).backward()
    optimizer.step()
    model.eval()
    fresh = attached(name="dora", rank=3)[1]
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(model, DATA), logits(fresh, DATA))


def test_the_formula_counts_what_trains():
    _, model = attached(name="dora", rank=3)
    shapes = [(layer.in_features, layer.out_features) for layer in layers(model).values()]
    assert trainable_parameters(model) == sum(3 * (a + b) + b for a, b in shapes)
