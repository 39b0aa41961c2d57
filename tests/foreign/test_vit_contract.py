"""The contract of a method on a model that is not ours: transformers' ViT, for every method that needs no sockets."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import microplane
from microplane.config.knobs import TrainKnobs
from microplane.errors import AdapterError, ConfigError
from microplane.methods import METHODS, make_method
from microplane.methods.adapted_linear import AdaptedLinear
from microplane.nn.quantised import QuantisedLinear
from microplane.training.optim import make_optimizer
from microplane.training.resume import load_checkpoint, save_checkpoint
from tests.foreign.kit import digits, vit

NAMES = [name for name, method in METHODS.items() if not method.needs_own_model]
KNOBS = {
    "adalora": {"rank": 2, "initial_rank": 4, "interval": 1},
    "scalora": {"rank": 2, "interval": 1},
}


@pytest.fixture(params=NAMES)
def method(request):
    return make_method({"name": request.param, **KNOBS.get(request.param, {})})


def head(method):
    """What trains beside; full fine-tuning trains it anyhow."""
    return () if method.whole_model else ("classifier",)


def attached(method, seed=0, base="plain"):
    model = vit(layers=1, hidden=32)
    torch.manual_seed(seed)
    return microplane.attach(model, method, train=head(method), base=base)


def outputs(model):
    with torch.no_grad():
        return model(digits()[0][:8]).logits


def steps(adapted, optimizer, count, start=0, total=6):
    images, labels = digits()[0][:32], digits()[1][:32]
    losses = []
    adapted.model.train()
    for number in range(start, start + count):
        torch.manual_seed(number)
        loss = F.cross_entropy(adapted.model(images).logits, labels)
        (loss + adapted.penalty()).backward()
        adapted.step(optimizer, number, total)
        optimizer.zero_grad()
        losses.append(loss.item())
    adapted.model.eval()
    return losses


def trained(method, count=3, base="plain"):
    adapted = attached(method, base=base)
    optimizer = make_optimizer(method, adapted.model, TrainKnobs(lr=2e-3))
    return adapted, optimizer, steps(adapted, optimizer, count)


def test_attach_leaves_the_output_unchanged(method):
    assert torch.equal(outputs(vit(layers=1, hidden=32)), outputs(attached(method).model))


def test_what_trains_is_declared_grouped_once_and_moves_and_the_rest_stays(method):
    adapted = attached(method)
    grouped = [id(p) for group in adapted.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in adapted.trainable().values())
    own = {name for name, _ in vit(layers=1, hidden=32).named_parameters()}
    if not method.trains_base:
        assert adapted.trainable().keys() & own == {"classifier.weight", "classifier.bias"}
    elif method.whole_model:
        assert adapted.trainable().keys() & own == own
    else:  # it selects some of them
        assert {"classifier.weight", "classifier.bias"} < adapted.trainable().keys() & own < own
    outputs(adapted.model)
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    losses = steps(adapted, make_optimizer(method, adapted.model, TrainKnobs(lr=2e-3)), 4)
    names = set(adapted.trainable())
    moved = {name for name, tensor in adapted.model.state_dict().items() if not torch.equal(tensor, before[name])}
    resting = {
        "vit.embeddings.mask_token",
        *(n for n in names if n.endswith("key.bias")),
    }  # softmax cancels a key's bias
    assert names - resting <= moved | method.may_not_move(adapted.model)
    assert moved <= names
    assert losses[-1] < losses[0]


def test_saved_and_opened_it_is_the_same_to_the_bit(method, tmp_path):
    adapted, _, _ = trained(method)
    size = adapted.save(tmp_path)
    assert size > 0
    fresh = microplane.attach_saved(vit(layers=1, hidden=32), tmp_path, base="plain")
    assert fresh.method == method
    assert torch.equal(outputs(adapted.model), outputs(fresh.model))


def test_merged_it_is_the_plain_model_again(method):
    adapted, _, _ = trained(method)
    unmerged = outputs(adapted.model)
    merged = adapted.merge()
    plain = vit(layers=1, hidden=32)
    assert not any(isinstance(module, AdaptedLinear) for module in merged.modules())
    assert set(merged.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(outputs(merged), unmerged, atol=1e-4, rtol=1e-4)
    plain.load_state_dict(merged.state_dict())
    assert torch.equal(outputs(plain), outputs(merged))


def test_three_steps_saved_and_continued_are_six_steps_bitwise(method, tmp_path):
    straight, _, losses = trained(method, 6)
    adapted, optimizer, first = trained(method, 3)
    save_checkpoint(tmp_path, 3, adapted.model, method, optimizer, {})
    adapted = attached(method, seed=9)
    optimizer = make_optimizer(method, adapted.model, TrainKnobs(lr=2e-3))
    load_checkpoint(tmp_path / "step-00000003", adapted.model, method, optimizer)
    assert first + steps(adapted, optimizer, 3, start=3) == losses
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, adapted.model.state_dict()[name]), name


def test_an_adapter_of_something_else_is_refused_with_a_list(method):
    adapted = attached(method)
    state = dict(adapted.state())
    name = next(iter(state))
    state["stranger"] = state.pop(name)
    with pytest.raises(AdapterError) as caught:
        adapted.load_state(state)
    assert f"missing: {name}" in str(caught.value)
    assert "unexpected: stranger" in str(caught.value)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_on_a_quantised_base(method, kind, tmp_path):
    if method.trains_base or method.needs_float32:
        with pytest.raises(ConfigError, match=f"base = {kind}: the method {method.name}"):
            attached(method, base=kind)
        return
    adapted = attached(method, base=kind)
    assert sum(isinstance(module, QuantisedLinear) for module in adapted.model.modules()) == 6
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    losses = steps(adapted, make_optimizer(method, adapted.model, TrainKnobs(lr=2e-3)), 4)
    assert losses[-1] < losses[0]
    moved = {name for name, tensor in adapted.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved <= set(adapted.trainable())
    with pytest.raises(AdapterError, match="quantised"):
        adapted.merge()
    adapted.save(tmp_path)
    opened = microplane.attach_saved(vit(layers=1, hidden=32), tmp_path)
    assert torch.equal(outputs(adapted.model), outputs(opened.model))
    plain = microplane.attach_saved(vit(layers=1, hidden=32), tmp_path, base="plain")
    assert not torch.equal(outputs(plain.model), outputs(opened.model))
    plain.merge()


def test_on_a_base_in_bfloat16(method):
    if method.trains_base:
        pytest.skip("its weights are kept in float32")
    model = vit(layers=1, hidden=32).bfloat16()
    if method.needs_float32:
        with pytest.raises(ConfigError, match="the base is bfloat16"):
            microplane.attach(model, method)
        return
    adapted = microplane.attach(model, method, None if method.name == "ia3" else "vit.*", base="plain")
    images, labels = digits()[0][:32].bfloat16(), digits()[1][:32]
    lr = 1e-2 if method.name == "adalora" else 2e-3  # which starts with E = 0 and is pruned at once
    optimizer, losses = make_optimizer(method, model, TrainKnobs(lr=lr)), []
    for number in range(5):
        loss = F.cross_entropy(model(images).logits.float(), labels)
        (loss + adapted.penalty()).backward()
        adapted.step(optimizer, number, 6)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(parameter.dtype == torch.float32 for parameter in adapted.trainable().values())
    assert losses[-1] < losses[0]


def test_qlora_quantises_by_itself():
    adapted = microplane.attach(vit(layers=1, hidden=32), {"name": "qlora", "start": "loftq", "rank": 8}, "vit.*")
    kinds = {module.kind for module in adapted.model.modules() if isinstance(module, QuantisedLinear)}
    assert kinds == {"nf4"}
    plain = outputs(vit(layers=1, hidden=32))
    rounded = outputs(microplane.attach(vit(layers=1, hidden=32), "qlora", "vit.*").model)
    assert (outputs(adapted.model) - plain).norm() < (rounded - plain).norm()
    with pytest.raises(ConfigError, match="base = 'nf5': possible are auto, plain, "):
        microplane.attach(vit(layers=1, hidden=32), "lora", base="nf5")
