"""Decay falls on matrices, and neither on norms nor on biases, whatever trains them; adapters go to the base."""

from __future__ import annotations

import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.methods import METHODS as ALL
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.heads import ensure_head
from microplane.training.optim import make_optimizer
from tests.methods.kit import DATA, attached
from tests.tiny import logits, tiny, tiny_encoder, tiny_pairs

MODELS = {
    "qwen2": lambda: tiny("qwen2"),
    "bert": tiny_encoder,
    "t5": tiny_pairs,
    "marian": lambda: tiny_pairs("marian"),
}
METHODS = ["full", {"name": "last-n", "n": 1}, "lora", "head-only"]


def moved_by_decay(model, method, **knobs):
    """Which trained tensors change in a step whose gradients are all zero: what decay alone does."""
    optimizer = make_optimizer(method, model, TrainKnobs(lr=0.1, **knobs))
    before = {name: tensor.detach().clone() for name, tensor in trainable(model).items()}
    for tensor in trainable(model).values():
        torch.nn.init.ones_(tensor)
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    return {
        name for name, tensor in trainable(model).items() if not torch.equal(tensor, torch.ones_like(tensor))
    }, before


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("given", METHODS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_only_matrices_decay(name, given, optimizer):
    model, method = MODELS[name](), make_method(given)
    ensure_head(model, "classification", ("a", "b", "c"), "auto", 0)
    attach_method(method, model)
    moved, tensors = moved_by_decay(model, method, weight_decay=0.5, optimizer=optimizer)
    assert moved == {name for name, tensor in tensors.items() if tensor.dim() > 1}
    assert moved
    assert given in ("lora", "head-only") or len(moved) < len(tensors), "there is something of either kind"


def test_rates_of_levels_and_groups_of_methods_stay():
    """Splitting keeps each tensor's rate; without decay nothing is split."""

    def rates(decay):
        model, method = tiny("qwen2"), make_method("full")
        attach_method(method, model)
        optimizer = make_optimizer(method, model, TrainKnobs(lr=0.1, layer_decay=0.5, weight_decay=decay))
        names = {id(tensor): name for name, tensor in trainable(model).items()}
        found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        return found, len(optimizer.param_groups)

    (plain, few), (split, more) = rates(0.0), rates(0.1)
    assert plain == split
    assert len(set(plain.values())) == 4
    assert few == 4 < more


ADAPTERS = [name for name, kind in ALL.items() if kind.starts_at_base and kind.trains == "adapter"]


def decayed(method, model, steps):
    """What the model computes after steps whose gradients are all zero."""
    optimizer = make_optimizer(method, model, TrainKnobs(lr=0.01, weight_decay=0.5))
    for _ in range(steps):
        for tensor in trainable(model).values():
            tensor.grad = torch.zeros_like(tensor)
        optimizer.step()
    return logits(model, DATA)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_new_adapter_stays_at_its_base(name):
    """Where all that is left of one is decay, it is the base; DoRA's magnitudes are the base's own lengths."""
    method, model = attached("qwen2", name=name)
    before = logits(model, DATA)
    torch.testing.assert_close(decayed(method, model, 100), before, rtol=1e-4, atol=1e-4)


def test_of_dora_the_pairs_decay_and_the_magnitudes_do_not():
    method, model = attached("qwen2", name="dora")
    before = {name: tensor.detach().clone() for name, tensor in trainable(model).items()}
    decayed(method, model, 10)
    same = {name for name, tensor in trainable(model).items() if torch.equal(tensor, before[name])}
    assert {name.rsplit(".", 1)[1] for name in same} == {"lora_magnitude_vector", "lora_B"}, "those of B are zero"
