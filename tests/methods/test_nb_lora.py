"""NB-LoRA's six: orthonormality, the bound, the ball, the start, the conversion, gradients; and that all is reached."""

from __future__ import annotations

import pytest
import torch

from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.adapted_linear import adapted_layers
from microplane.methods.nb_lora import NBLoRALinear
from microplane.nn.ops.cayley import ROUNDING, _by_skew_system, _without_waiting, cayley, cayley_reference
from tests.tiny import copy_task, logits, tiny


def layer(out=9, into=7, **knobs):
    method = make_method({"name": "nb-lora", "rank": 4, **knobs})
    return NBLoRALinear(torch.nn.Linear(into, out, dtype=torch.double), method).double()


def randomised(size, **knobs):
    module = layer(**knobs)
    for parameter in (module.free_A, module.free_B, *([module.v] if module.method.bounds_train else [])):
        parameter.data.normal_(0, size)
    return module


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0, 1000.0])
def test_the_factors_side_by_side_are_orthonormal(size):
    A, B = randomised(size).factors()
    assert (A @ A.t() + B @ B.t() - torch.eye(4)).abs().max() < 1e-9


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_each_singular_value_keeps_its_bound(size):
    for seed in range(20):
        torch.manual_seed(seed)
        module = randomised(size)
        values = torch.linalg.svdvals(module.delta())[:4]
        assert (values <= module.bounds().sort(descending=True).values * (1 + 1e-9)).all()


@pytest.mark.parametrize("p", [1, 1.5, 2, "inf"])
@pytest.mark.parametrize("bounds", ["trained", "fixed"])
def test_the_update_stays_in_the_ball(p, bounds):
    module = randomised(3.0, p=p, delta=2.5, bounds=bounds, temperature=0.7)
    values, s = torch.linalg.svdvals(module.delta()), module.bounds()
    if p == "inf":
        assert torch.allclose(s, torch.full_like(s, 2.5))
        assert values.max() <= 2.5 * (1 + 1e-9)
    else:
        assert torch.allclose((s**p).sum(), torch.tensor(2.5**p, dtype=torch.double))
        assert (values**p).sum() <= 2.5**p * (1 + 1e-9)


def test_the_bounds_follow_v_over_the_temperature():
    module = layer(p=2, delta=3.0, temperature=0.5)
    module.v.data = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.double)
    expected = 3 * torch.softmax(module.v / 0.5, 0).sqrt()
    assert torch.allclose(module.bounds(), expected)


def test_it_starts_at_zero_and_stays_in_the_ball_as_it_trains():
    module = layer(delta=0.5)
    assert not module.delta().any()
    x, wanted = torch.randn(20, 7, dtype=torch.double), torch.randn(20, 9, dtype=torch.double)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    losses = []
    for _ in range(30):
        loss = (module(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert 0.1 < torch.linalg.norm(module.delta()) <= 0.5 * (1 + 1e-9)


def test_it_is_a_plain_lora():
    module = randomised(1.0)
    A, B = module.factors()
    lora_A, lora_B = module.low_rank()
    assert torch.equal(lora_A, B)
    assert torch.allclose(lora_B, 2 * A.t() @ torch.diag(module.bounds()))
    assert torch.allclose(lora_B @ lora_A, 2 * A.t() @ torch.diag(module.bounds()) @ B)
    x = torch.randn(3, 7, dtype=torch.double)
    assert torch.allclose(module(x), module.base(x) + x @ lora_A.t() @ lora_B.t())


def test_gradients():
    module = randomised(0.5)
    x = torch.randn(3, 7, dtype=torch.double)

    def output(free_A, free_B, v):
        return torch.func.functional_call(module, {"free_A": free_A, "free_B": free_B, "v": v}, (x,))

    inputs = [p.detach().clone().requires_grad_() for p in (module.free_A, module.free_B, module.v)]
    assert torch.autograd.gradcheck(output, inputs)


def test_the_transform_agrees_with_its_reference_and_has_its_gradient():
    F = torch.randn(11, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.double)
    assert torch.allclose(cayley(F), cayley_reference(F))
    one = torch.autograd.grad((cayley(F) * weight).sum(), F)[0]
    other = torch.autograd.grad((cayley_reference(F) * weight).sum(), F)[0]
    assert torch.allclose(one, other)


@pytest.mark.parametrize("size", [0.0, 1.0, 300.0, 3e4, 1e7])
@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-6, 0.0])
@pytest.mark.parametrize("rows", [40, 5])
def test_columns_are_orthonormal_whatever_training_reaches(size, apart, rows):
    """Large factors, columns nearly or wholly equal, and more columns than rows below."""
    F = ((torch.randn(8 + rows, 1) + apart * torch.randn(8 + rows, 8)) * size).requires_grad_()
    columns = cayley(F)
    sigma = torch.linalg.svdvals(columns.double())
    assert (sigma - 1).abs().max() <= ROUNDING
    (grad,) = torch.autograd.grad((columns * torch.randn(8 + rows, 8)).sum(), F)
    assert grad.isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1.0, 300.0, 3e4])
@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-6, 0.0])
@pytest.mark.parametrize("rows", [40, 5])
def test_columns_are_orthonormal_where_nobody_may_look_at_numbers(size, apart, rows):
    """On a device: the same columns, up to sizes that training does not reach."""
    F = (torch.randn(8 + rows, 1) + apart * torch.randn(8 + rows, 8)) * size
    columns, _, K = _without_waiting(F)
    assert (torch.linalg.svdvals(columns) - 1).abs().max() <= 1e-9
    wanted, _, wanted_K = _by_skew_system(F.double())
    assert torch.allclose(columns, wanted, atol=1e-3)
    assert torch.allclose(K, wanted_K, atol=1e-3)


def test_ordinary_factors_need_the_formula_alone(monkeypatch):
    """The skew system is dearer and rounds otherwise, and answers rightly where the formula is wrong."""
    monkeypatch.setattr("microplane.nn.ops.cayley._by_skew_system", None)
    for size in (0.0, 0.1, 1.0):
        cayley(torch.randn(40, 8) * size)


def test_every_update_within_the_bounds_is_reached():
    s = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.double)
    sigma = s * torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.double)
    U, _ = torch.linalg.qr(torch.randn(9, 4, dtype=torch.double))
    V, _ = torch.linalg.qr(torch.randn(7, 4, dtype=torch.double))
    theta = torch.asin(sigma / s) / 2
    A, B = torch.diag(theta.cos()) @ U.t(), torch.diag(theta.sin()) @ V.t()
    assert torch.allclose(A @ A.t() + B @ B.t(), torch.eye(4, dtype=torch.double))
    assert torch.allclose(2 * A.t() @ torch.diag(s) @ B, U @ torch.diag(sigma) @ V.t())


def test_ready_for_use_it_transforms_once_and_answers_the_same():
    data, method, model = copy_task(8), make_method({"name": "nb-lora", "rank": 4}), tiny()
    method.attach(model)
    for _, module in adapted_layers(model, NBLoRALinear):
        module.free_A.data.normal_(0, 0.1)
    before = logits(model.eval(), data)
    model.requires_grad_(False)
    assert torch.equal(logits(model, data), before)
    module = next(m for _, m in adapted_layers(model, NBLoRALinear))
    assert module.low_rank() is module.low_rank()
    state = {name: tensor * 2 for name, tensor in method.state(model).items()}
    method.load(model, state)
    assert not torch.equal(logits(model, data), before)


def test_a_rank_beyond_the_layer_and_a_norm_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="rank = 17: a layer of this model is 16 x 32"):
        make_method({"name": "nb-lora", "rank": 17}).attach(tiny())
    with pytest.raises(ConfigError, match=r"method.p.*must be at least 1, or inf"):
        make_method({"name": "nb-lora", "p": 0.5})
