"""One optimizer step, against the same arithmetic written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.methods import make_method
from microplane.methods.method import trainable
from microplane.objectives.next_token import NextToken
from microplane.training.adamw_8bit import AdamW8bit
from microplane.training.optim import make_optimizer
from microplane.training.step import Totals, TrainState, train_step
from tests.tiny import copy_task, tiny

DATA = copy_task(16)


def made(method="full", data=DATA, **knobs):
    model, method = tiny(), make_method(method)
    method.attach(model)
    knobs = TrainKnobs(**{"steps": 4, "batch_size": 16, "lr": 0.5, "schedule": "constant", "warmup": 0} | knobs)
    return TrainState.of(NextToken(), model.train(), method, data, knobs)


class Follower:
    """A data set that notes of which epochs its rows are asked."""

    def __init__(self, data):
        self.data, self.epochs = data, []

    def __getattr__(self, name):
        return getattr(self.data, name)

    def __getitem__(self, row):
        return self.data[row]

    def __len__(self):
        return len(self.data)

    def at(self, epoch):
        self.epochs.append(epoch)
        return self


def gradient(model):
    """Of the mean loss of all rows."""
    batch = NextToken().collate(DATA, range(len(DATA)))
    (NextToken().loss(model, batch) / batch.count).backward()
    return {name: tensor.grad.clone() for name, tensor in trainable(model).items() if tensor.grad is not None}


@pytest.mark.parametrize("clip", [0, 0.1, 1e6])
@pytest.mark.parametrize("micro_tokens", [4096, 40])
def test_a_step_goes_along_the_gradient_of_all_rows_cut_to_the_norm(monkeypatch, clip, micro_tokens):
    """Plain descent takes the optimizer's place, so that the size of the gradient shows."""
    state = made(clip=clip, micro_tokens=micro_tokens)
    before = {name: tensor.detach().clone() for name, tensor in trainable(state.model).items()}
    grads = gradient(state.model)
    state.model.zero_grad()
    norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
    group = {**state.optimizer.param_groups[0]}
    descent = torch.optim.SGD(group["params"], lr=group["lr"])
    descent.param_groups[0]["peak_lr"] = group["peak_lr"]
    record = train_step(replace(state, optimizer=descent), Totals())
    assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    scale = 0.5 * min(1.0, clip / norm.item() if clip else 1.0)
    for name, tensor in trainable(state.model).items():
        torch.testing.assert_close(tensor, before[name] - scale * grads[name], rtol=1e-3, atol=1e-5)
        assert tensor.grad is None


def test_the_penalty_of_a_method_is_a_part_of_the_gradient(monkeypatch):
    state = made({"name": "lora", "rank": 2})
    weight = next(iter(trainable(state.model).values()))
    grads = []
    with monkeypatch.context() as patch:
        patch.setattr(type(state.method), "step", lambda *given: grads.append(weight.grad.clone()))
        train_step(replace(state, knobs=state.knobs.model_copy(update={"clip": 0})), Totals())
        patch.setattr(type(state.method), "penalty", lambda method, model: 3 * weight.sum())
        train_step(replace(state, knobs=state.knobs.model_copy(update={"clip": 0})), Totals())
    torch.testing.assert_close(grads[1], grads[0] + 3)


def test_a_method_is_told_the_number_of_its_step_and_of_all(monkeypatch):
    state, totals, told = made(steps=3), Totals(), []
    monkeypatch.setattr(type(state.method), "step", lambda method, model, optimizer, *given: told.append(given))
    for _ in range(3):
        train_step(state, totals)
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_each_epoch_asks_for_its_own_rows():
    data = Follower(copy_task(16))
    state, totals = made(data=data, steps=8, batch_size=8, lr=1e-3), Totals()
    for _ in range(6):
        train_step(state, totals)
    assert data.epochs == [0, 0, 1, 1, 2, 2]


def test_what_a_step_counts():
    state, totals = made(batch_size=5, lr=1e-3, steps=8), Totals()
    records = [train_step(state, totals) for _ in range(4)]
    assert totals.tokens == sum(record["tokens"] for record in records) == int(DATA.lengths.sum())
    assert totals.trained_tokens == int(DATA.trained_counts.sum())
    assert records[-1]["epoch"] == 1.0
    assert totals.losses == [record["loss"] for record in records]


def test_validations_are_a_tenth_of_the_run_apart_or_as_was_asked():
    assert [made(steps=steps).eval_every for steps in (4, 15, 100, 101)] == [1, 2, 10, 11]
    assert made(steps=100, eval_every=3).eval_every == 3


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adamw_8bit", AdamW8bit)])
def test_the_optimizer_has_the_knobs_that_were_set(name, kind):
    method, model = make_method("full"), tiny()
    method.attach(model)
    knobs = TrainKnobs(lr=0.01, betas=(0.5, 0.7), eps=1e-3, weight_decay=0.25, optimizer=name)
    optimizer = make_optimizer(method, model, knobs)
    assert isinstance(optimizer, kind)
    for group in optimizer.param_groups:
        assert (tuple(group["betas"]), group["eps"], group["peak_lr"]) == ((0.5, 0.7), 1e-3, 0.01)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.25}
