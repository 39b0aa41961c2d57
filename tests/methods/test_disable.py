"""Switching a method off: where it cannot be, and on models and bases of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import microplane
from microplane.errors import AdapterError
from microplane.methods import make_method
from microplane.methods.disable import disabled
from microplane.methods.method import attach_method
from microplane.models.files.load import load_model, save_model
from microplane.nn.number_format import NumberFormat
from tests.methods.kit import DATA, shake
from tests.tiny import logits, tiny


def adapted(**knobs):
    method, model = make_method({"name": "lora", **knobs}), tiny()
    attach_method(method, model)
    shake(model)
    return method, model.eval()


def test_without_a_method_there_is_nothing_to_switch_off():
    with pytest.raises(AdapterError, match="no method is attached to this model, or it was merged"), disabled(tiny()):
        pass


def test_what_was_merged_cannot_be_switched_off():
    method, model = adapted()
    method.merge(model)
    with pytest.raises(AdapterError, match="or it was merged"), disabled(model):
        pass


@pytest.mark.parametrize(
    "knobs",
    [{"name": "full"}, {"name": "norms"}, {"name": "last-n", "n": 1}, {"name": "bottleneck", "kind": "houlsby"}],
    ids=lambda knobs: knobs["name"],
)
def test_what_trains_the_base_itself_is_refused(knobs):
    _, model = adapted(**knobs)
    wanted = logits(model, DATA)
    with pytest.raises(AdapterError, match=f"{knobs['name']} trains the model's own weights"), disabled(model):
        pass
    assert torch.equal(logits(model, DATA), wanted)


def test_gradients_flow_to_the_adapter_around_a_look_at_the_reference():
    """What a preference loss does in each step: the reference without, then the policy with the adapter."""
    _, model = adapted()
    model.train()
    with disabled(model), torch.no_grad():
        reference = logits(model, DATA)
    assert torch.equal(reference, logits(tiny(), DATA))
    layer = model.layers[0].attention.q
    layer(torch.randn(3, layer.in_features)).sum().backward()
    assert layer.lora_B.grad.any()


@pytest.mark.parametrize("name", ["lora-fa", "lora", "dora", "ia3", "vera"])
def test_what_was_frozen_stays_frozen_behind_a_look_at_the_base(name):
    """In peft all of an adapter trains behind such a look (`findings/frozen-until-one-looks-at-the-base.sh`)."""
    _, model = adapted(name=name)
    for number, weight in enumerate(weight for weight in model.parameters() if weight.requires_grad):
        weight.requires_grad_(number % 2 == 0)  # every second one by hand, beside what the method itself does not train
    before = [weight.requires_grad for weight in model.parameters()]
    assert 0 < sum(before) < len(before)
    with disabled(model):
        assert logits(model, DATA).isfinite().all()
    assert [weight.requires_grad for weight in model.parameters()] == before


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_on_a_quantised_base(kind, tmp_path):
    save_model(tiny(), tmp_path)
    plain, model = (load_model(tmp_path, NumberFormat(torch.float32, kind)) for _ in range(2))
    attach_method(make_method("lora"), model)
    shake(model)
    assert not torch.equal(logits(model, DATA), logits(plain, DATA))
    with disabled(model):
        assert torch.equal(logits(model, DATA), logits(plain, DATA))


def test_on_a_model_that_is_not_ours_with_a_layer_in_a_sequence():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), torch.randn(7, 6)
    wanted = model(x)
    attached = microplane.attach(model, "lora", targets=["0"])
    shake(model)
    changed = model(x)
    assert not torch.equal(changed, wanted)
    with attached.disabled():
        assert torch.equal(model(x), wanted)
    assert torch.equal(model(x), changed)
    attached.merge()
    with pytest.raises(AdapterError, match="or it was merged"), attached.disabled():
        pass
