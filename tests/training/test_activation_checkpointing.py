"""Blocks that are computed again in backward: the same bits, fewer activations kept."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from microplane.forecast.held import Held
from microplane.methods import make_method
from microplane.methods.method import trainable
from microplane.models.files.load import quantise_linears
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops.scratch import no_scratch, scratch_buffer
from microplane.nn.rows import Rows
from microplane.nn.selective_recompute import recomputed, selective_recompute
from microplane.objectives.next_token import NextToken
from microplane.training import activation_checkpointing
from microplane.training.activation_checkpointing import recomputed_in_backward
from tests.contract.families import FAMILIES
from tests.tiny import copy_task, logits, tiny

DATA = copy_task()


class Counting(saved_tensors_hooks):
    """Notes what is kept, also by hooks inside of other hooks; storages once."""

    def __init__(self, pack, unpack):
        def noted(tensor):
            result = pack(tensor)
            if isinstance(result, torch.Tensor):
                KEPT[result.untyped_storage().data_ptr()] = result
            return result

        super().__init__(noted, unpack)


KEPT = {}


def kept_and_gradients(what, kind, dropout, monkeypatch):
    KEPT.clear()
    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", Counting)
    model = tiny()
    quantise_linears(model, NumberFormat(torch.float32, kind))
    torch.manual_seed(0)
    make_method({"name": "lora", "rank": 2, "dropout": dropout}).attach(model)
    with recomputed_in_backward(model, what):
        before = logits(model.eval(), DATA)
        model.train()
        torch.manual_seed(1)
        with Counting(lambda t: t, lambda t: t):
            loss = NextToken().loss(model, NextToken().collate(DATA, range(8)))
        own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        kept = sum(tensor.untyped_storage().nbytes() for place, tensor in KEPT.items() if place not in own)
        loss.backward()
    return kept, {name: tensor.grad for name, tensor in trainable(model).items()}, loss, before


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
def test_it_keeps_less_and_gives_the_same_bits(kind, dropout, monkeypatch):
    kept, gradients, loss, before = kept_and_gradients("none", kind, dropout, monkeypatch)
    for what, most in (("cheap", 0.95 if dropout else 0.65), ("blocks", 0.5)):
        less, same, again, after = kept_and_gradients(what, kind, dropout, monkeypatch)
        assert less < most * kept, what
        assert torch.equal(loss, again)
        assert torch.equal(before, after)
        assert all(torch.equal(gradients[name], same[name]) for name in gradients)


@pytest.mark.parametrize("targets", [["q", "v"], ["all"]])
@pytest.mark.parametrize(("what", "most"), [("cheap", 0.9), ("blocks", 0.5)])
def test_less_is_alive_between_forward_and_backward(what, most, targets):
    """Of all that torch made, whoever holds it: autograd, or the hooks that it keeps beside what they packed."""

    def alive(what):
        model = tiny().train()
        make_method({"name": "lora", "rank": 2, "targets": targets}).attach(model)
        batch = NextToken().collate(DATA, range(8))
        own = [*model.parameters(), *model.buffers()]
        with recomputed_in_backward(model, what), no_scratch(), Held(own) as held:
            loss = NextToken().loss(model, batch)
        assert loss.requires_grad
        return held.now

    scratch_buffer("logits", [1 << 20], torch.float32, torch.device("cpu"))  # as a larger model leaves it
    assert alive(what) < most * alive("none")


@pytest.mark.parametrize("what", ["cheap", "blocks"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_gives_the_same_bits_where_all_weights_train(family, what):
    def gradients(what):
        model = FAMILIES[family].build()
        make_method("full").attach(model)
        objective = FAMILIES[family].objective
        with recomputed_in_backward(model, what):
            torch.manual_seed(1)
            objective.loss(model.train(), objective.collate(FAMILIES[family].data, range(8))).backward()
        return [tensor.grad for tensor in trainable(model).values()]

    assert all(map(torch.equal, gradients(what), gradients("none")))


@pytest.mark.parametrize("what", ["cheap", "blocks"])
def test_afterwards_the_blocks_are_as_they_were(what):
    model = tiny()
    with contextlib.suppress(ZeroDivisionError), recomputed_in_backward(model, what):
        assert any("forward" in vars(module) for module in model.modules())
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_result_that_was_changed_in_place_is_kept_as_it_is():
    x, other = torch.randn(5, 3, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    with selective_recompute():
        changed = recomputed(torch.exp, x).detach().mul_(2)
        (changed @ other).sum().backward()
    torch.testing.assert_close(other.grad, (2 * x.exp()).detach().sum(0)[:, None].expand(3, 2))


def test_a_result_is_made_once_for_all_that_keep_it():
    calls, x, other = [], torch.randn(5, 3, requires_grad=True), torch.randn(3, 2, requires_grad=True)

    def tanh(x):
        calls.append(len(calls))
        return x.tanh()

    with selective_recompute():
        y = recomputed(tanh, x)
        (y @ other + y @ (2 * other)).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize(("what", "times"), [("none", 1), ("cheap", 1), ("blocks", 2)])
def test_how_often_a_block_is_computed(what, times):
    model, calls = tiny().train().requires_grad_(), []
    block = model.layers[0]
    forward = block.forward
    block.forward = lambda *args, **kwargs: (calls.append(None), forward(*args, **kwargs))[1]
    with recomputed_in_backward(model, what):
        model.logits(model(Rows.of([[5, 8, 13]]))).sum().backward()
    assert len(calls) == times


@pytest.mark.parametrize("what", ["cheap", "blocks"])
@pytest.mark.parametrize(("trains", "gradient"), [(True, False), (False, True), (False, False)])
def test_where_no_gradient_is_kept_nothing_is_made_ready_for_one(what, trains, gradient, monkeypatch):
    """A validation, and a look at rows in between, cost what they cost without."""
    model, asked = tiny().train(trains).requires_grad_(), []
    for name in ("checkpoint", "selective_recompute"):
        own = getattr(activation_checkpointing, name)
        monkeypatch.setattr(activation_checkpointing, name, lambda *a, own=own, **k: (asked.append(1), own(*a, **k))[1])
    with recomputed_in_backward(model, what):
        with torch.set_grad_enabled(gradient):
            model(Rows.of([[5, 8, 13]]))
        assert not asked
        model.train()(Rows.of([[5, 8, 13]]))
    assert len(asked) == len(model.layers)


@pytest.mark.parametrize("what", ["cheap", "blocks"])
def test_blocks_below_all_that_trains_are_computed_once(what):
    model, calls = tiny().train(), []
    make_method({"name": "last-n", "n": 1}).attach(model)
    for number, block in enumerate(model.layers):
        block.forward = lambda *a, number=number, own=block.forward, **k: (calls.append(number), own(*a, **k))[1]
    with recomputed_in_backward(model, what):
        model.logits(model(Rows.of([[5, 8, 13]]))).sum().backward()
    assert {calls.count(number) for number in range(len(model.layers) - 1)} == {1}
