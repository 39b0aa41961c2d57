"""The contract of a method, for every method on every model. A new method is tested by its line in METHODS."""

from __future__ import annotations

import copy

import pytest
import torch

from microplane.config import TrainKnobs
from microplane.errors import AdapterError, ConfigError
from microplane.methods import METHODS, make_method
from microplane.methods.kinds import AdaptedLinear
from microplane.methods.method import trainable
from microplane.training.checkpoint import load_adapter, load_checkpoint, read_method, save_adapter, save_checkpoint
from microplane.training.objective import loss_sum, make_batch
from microplane.training.optim import make_optimizer
from microplane.training.prepare import sample_losses
from tests.tiny import CONFIGS, copy_task, logits, tiny

DATA = copy_task()
VARIANTS = [{"name": name} for name in METHODS] + [
    {"name": "rslora", "rank": 3, "targets": ["q", "down"]},
    {"name": "lora", "rank": 2, "dropout": 0.3},
    {"name": "lora", "rank": 3, "start": "pissa"},
    {"name": "lora", "rank": 3, "start": "olora", "dropout": 0.3},
    {"name": "lora", "rank": 3, "start": "eva", "start_rows": 16},
    {"name": "lora+", "rank": 3, "start": "lora_ga", "start_rows": 16},
    {"name": "dora", "rank": 3, "start": "pissa"},
    {"name": "dora", "rank": 2, "dropout": 0.3},
    {"name": "vera", "rank": 5, "dropout": 0.3, "save_projections": False},
    {"name": "ia3", "targets": ["q", "up"], "feedforward": []},
    {"name": "lora", "rank": "auto", "dropout": 0.3},
    {"name": "adalora", "rank": 2, "initial_rank": 4, "interval": 1, "dropout": 0.1},
    {"name": "scalora", "rank": 2, "interval": 1},
    {"name": "nb-lora", "rank": 3, "p": 1, "bounds": "fixed"},
]


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))
def method(request):
    return make_method(request.param)


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


def attached(family, method, seed=0, prepare=True):
    model = tiny(family)
    torch.manual_seed(seed)
    method.attach(model)
    if prepare:
        method.prepare(model, sample_losses(model, DATA, method.prepare_rows, 0, 64))
    return model


def steps(model, method, optimizer, count, start=0, total=6):
    losses = []
    for number in range(start, start + count):
        torch.manual_seed(number)
        model.train()
        batch = make_batch(DATA, range(16))
        loss = loss_sum(model, batch) / len(batch.targets)
        loss.backward()
        method.step(model, optimizer, number, total)
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def trained(family, method, count=3):
    model = attached(family, method)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    return model, optimizer, steps(model, method, optimizer, count)


def test_attach_leaves_the_output_unchanged(family, method):
    if method.starts_at_base:
        assert torch.equal(logits(tiny(family), DATA), logits(attached(family, method).eval(), DATA))


def test_the_models_own_weights_train_only_where_declared(family, method):
    model = tiny(family).requires_grad_(True)  # whoever hands it over need not have frozen it
    own = {id(parameter) for parameter in model.parameters()}
    method.attach(model)
    assert any(id(p) in own for p in trainable(model).values()) == method.trains_base


def test_groups_hold_each_trainable_tensor_once(family, method):
    model = attached(family, method)
    grouped = [id(p) for group in method.param_groups(model, 1e-3) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in trainable(model).values())


def test_every_trainable_tensor_moves_and_loss_falls_and_the_rest_stays(family, method):
    model = attached(family, method)
    logits(model, DATA)  # a pass without gradients first must not cut anything off
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    losses = steps(model, method, optimizer, 4)
    names = set(trainable(model))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved | method.at_rest(model) == names
    assert losses[-1] < losses[0]


def test_state_brings_a_fresh_model_to_the_same_bits(family, method, tmp_path):
    model, _, _ = trained(family, method)
    save_adapter(tmp_path, model, method, {"base": "tiny"})
    again, about = read_method(tmp_path)
    assert again == method
    assert about["base"] == "tiny"
    fresh = attached(family, again, seed=1, prepare=False)
    load_adapter(tmp_path, fresh, again)
    assert torch.equal(logits(model, DATA), logits(fresh.eval(), DATA))


def test_merge_keeps_the_output_and_leaves_plain_modules(family, method):
    if not method.mergeable:
        with pytest.raises(AdapterError, match="cannot be merged"):
            method.merge(attached(family, method))
        return
    model, _, _ = trained(family, method)
    unmerged = logits(model, DATA)
    method.merge(model)
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())
    assert set(model.state_dict()) == set(tiny(family).state_dict())
    torch.testing.assert_close(logits(model, DATA), unmerged, atol=1e-4, rtol=1e-4)


def test_three_steps_saved_and_continued_are_six_steps_bitwise(family, method, tmp_path):
    straight, _, losses = trained(family, method, 6)
    model, optimizer, first = trained(family, method, 3)
    save_checkpoint(tmp_path, 3, model, method, optimizer, {})
    model = attached(family, method, seed=9, prepare=False)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    load_checkpoint(tmp_path / "step-00000003", model, method, optimizer)
    assert first + steps(model, method, optimizer, 3, start=3) == losses
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_foreign_adapter_is_refused_with_a_list_and_changes_nothing(family, method):
    model = attached(family, method)
    before = copy.deepcopy(model.state_dict())
    state = dict(method.state(model))
    name = next(iter(state))
    state["stranger"] = state.pop(name)
    with pytest.raises(AdapterError) as caught:
        method.load(model, state)
    assert f"missing: {name}" in str(caught.value)
    assert "unexpected: stranger" in str(caught.value)
    with pytest.raises(AdapterError, match=r"shape of .* in the adapter, .* in the model"):
        method.load(model, {n: t.flatten()[:1] for n, t in method.state(model).items()})
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_adapters_in_float32_on_a_bfloat16_base(family, method):
    if method.trains_base:
        pytest.skip("its weights are kept in float32")
    model = tiny(family).bfloat16()
    if method.needs_float32:
        with pytest.raises(ConfigError, match="the base is bfloat16"):
            method.attach(model)
        return
    method.attach(model)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    losses = steps(model, method, optimizer, 5)
    assert all(p.dtype == torch.float32 for p in trainable(model).values())
    assert losses[-1] < losses[0]


def test_facts_are_plain_values(method):
    assert set(method.facts()) >= {"quantize", "mergeable", "starts_at_base", "trains_base"}
