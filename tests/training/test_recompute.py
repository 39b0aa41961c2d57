"""Blocks that are computed again in backward: the same bits, fewer activations kept."""

from __future__ import annotations

import pytest
import torch

from microplane.methods import make_method
from microplane.methods.method import trainable
from microplane.models.load import quantise_linears
from microplane.nn.number_format import NumberFormat
from microplane.training.objective import loss_sum, make_batch
from microplane.training.recompute import recompute
from tests.tiny import copy_task, logits, tiny

DATA = copy_task()


def kept_and_gradients(what, kind):
    model = tiny()
    quantise_linears(model, NumberFormat(torch.float32, kind))
    torch.manual_seed(0)
    make_method({"name": "lora", "rank": 2, "dropout": 0.2}).attach(model)
    recompute(model, what)
    before = logits(model.eval(), DATA)
    model.train()
    torch.manual_seed(1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        loss = loss_sum(model, make_batch(DATA, range(8)))
    loss.backward()
    return sum(kept), {name: tensor.grad for name, tensor in trainable(model).items()}, loss, before


@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
def test_it_keeps_less_and_gives_the_same_bits(kind):
    kept, gradients, loss, before = kept_and_gradients("none", kind)
    for what, most in (("attention", 0.8), ("blocks", 0.5)):
        less, same, again, after = kept_and_gradients(what, kind)
        assert less < most * kept
        assert torch.equal(loss, again)
        assert torch.equal(before, after)
        assert all(torch.equal(gradients[name], same[name]) for name in gradients)
