"""Weight decay falls on matrices, and neither on norms nor on biases, whatever trains them."""

from __future__ import annotations

import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.heads import ensure_head
from microplane.training.optim import make_optimizer
from tests.tiny import tiny, tiny_encoder, tiny_pairs

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
