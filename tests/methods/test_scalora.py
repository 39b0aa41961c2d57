"""ScaLoRA's eight, in float64: the swap changes nothing, is the best one, follows the chain rule, raises the rank."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.optimize import nnls
from torch.nn import functional as F

from microplane.checkpoints.adapter import load_adapter, save_adapter
from microplane.config.knobs import ModelKnobs, TrainKnobs
from microplane.errors import ConfigError, TrainingError
from microplane.methods import make_method
from microplane.methods.adapted_linear import adapted_layers
from microplane.methods.base_format import base_format
from microplane.methods.scalora import ScaLoRALinear, numerical_factors, scale_moments, scaling
from microplane.objectives.next_token import NextToken
from microplane.training.optim import make_optimizer
from microplane.training.resume import load_checkpoint, save_checkpoint
from tests.tiny import copy_task, logits, tiny

M, N, R = 12, 10, 3
DATA = copy_task(16)


def problem(seed=0, columns=True):
    """(A, B, G), with a column solution or without one."""
    for trial in range(1000):
        generator = torch.Generator().manual_seed(1000 * seed + trial)
        A, B, G = (torch.randn(*s, generator=generator, dtype=torch.double) for s in ((M, R), (N, R), (M, N)))
        if (solution(A, B, G).min() >= 0) == columns:
            return A, B, G
    raise AssertionError("no such problem")


def parts(A, B, G):
    """The 2r rank-one matrices whose sum, weighted by alpha^2 and beta^2, should be G."""
    D_A, D_B = G @ B, G.t() @ A
    return [torch.outer(A[:, i], D_B[:, i]) for i in range(R)] + [torch.outer(D_A[:, i], B[:, i]) for i in range(R)]


def solution(A, B, G):
    columns = torch.stack([part.flatten() for part in parts(A, B, G)], 1)
    return torch.linalg.lstsq(columns, G.flatten()).solution


def distance(A, B, G, alpha, beta, L_eta):
    """J, up to a constant factor."""
    weights = torch.cat([alpha**2, beta**2]) * L_eta
    return (G - sum(w * part for w, part in zip(weights, parts(A, B, G), strict=True))).square().sum()


def scaled(A, B, G, L_eta=2.0):
    return scaling(A, B, G @ B, G.t() @ A, L_eta)


def a_layer(scale=0.7):
    layer = ScaLoRALinear(torch.nn.Linear(N, M, dtype=torch.double), R, scale)
    layer.base.requires_grad_(False)
    layer.lora_B.data.normal_()
    return layer


def test_the_swap_leaves_function_and_weight():
    layer, x = a_layer(), torch.randn(5, N, dtype=torch.double)
    before, weight = layer(x), layer.base.weight + layer.delta()
    layer.rescale(torch.tensor([0.5, 2.0, 3.0]).double(), torch.tensor([1.5, 0.1, 4.0]).double())
    assert torch.allclose(layer(x), before, atol=1e-12)
    assert torch.allclose(layer.base.weight + layer.delta(), weight, atol=1e-12)
    assert layer.drift.abs().max() > 0.1


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_scaling_is_the_best_of_its_kind(seed, columns):
    A, B, G = problem(seed, columns)
    alpha, beta = scaled(A, B, G)
    best = distance(A, B, G, alpha, beta, 2.0)
    assert best <= distance(A, B, G, torch.ones(R), torch.ones(R), 2.0)
    for _ in range(50):
        up, down = (1 + 0.1 * torch.randn(R if columns else 1, dtype=torch.double) for _ in range(2))
        assert best <= distance(A, B, G, alpha * up, beta * down, 2.0) + 1e-9
    if not columns:
        assert torch.allclose(alpha, alpha[:1])
        assert torch.allclose(beta, beta[:1])


@pytest.mark.parametrize("seed", range(4))
def test_by_columns_it_equals_a_non_negative_least_squares_solution(seed):
    A, B, G = problem(seed)
    columns = torch.stack([part.flatten() for part in parts(A, B, G)], 1)
    expected, _ = nnls(columns.numpy(), G.flatten().numpy())
    alpha, beta = scaled(A, B, G)
    assert torch.allclose(torch.cat([alpha, beta]) ** 2 * 2.0, torch.from_numpy(expected), atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_by_numbers_it_equals_one_in_two_unknowns(seed):
    A, B, G = problem(seed, columns=False)
    both = parts(A, B, G)
    columns = torch.stack([sum(both[:R]).flatten(), sum(both[R:]).flatten()], 1)
    expected, _ = nnls(columns.numpy(), G.flatten().numpy())
    alpha, beta = scaled(A, B, G)
    assert torch.allclose(torch.stack([alpha[0], beta[0]]) ** 2 * 2.0, torch.from_numpy(expected), atol=1e-9)


def test_of_two_numbers_one_can_be_zero():
    found = 0
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        A, B, G = (torch.randn(*s, generator=generator, dtype=torch.double) for s in ((4, R), (4, R), (4, 4)))
        both = parts(A, B, G)
        columns = torch.stack([sum(both[:R]).flatten(), sum(both[R:]).flatten()], 1)
        expected, _ = nnls(columns.numpy(), G.flatten().numpy())
        if solution(A, B, G).min() < 0 and expected.min() == 0:
            alpha, beta = scaled(A, B, G)
            assert torch.allclose(torch.stack([alpha[0], beta[0]]) ** 2 * 2.0, torch.from_numpy(expected), atol=1e-9)
            found += 1
    assert found


def test_solved_again_at_once_it_gives_ones():
    A, B, G = problem(1)
    alpha, beta = scaled(A, B, G)
    again = scaled(A * alpha, B * beta, G)
    assert torch.allclose(torch.cat(again), torch.ones(2 * R, dtype=torch.double))


def test_gradients_after_the_swap_are_the_old_ones_scaled_across():
    layer, x, y = a_layer(), torch.randn(20, N, dtype=torch.double), torch.randn(20, M, dtype=torch.double)
    (layer(x) - y).square().sum().backward()
    grad_A, grad_B = layer.lora_A.grad.clone(), layer.lora_B.grad.clone()
    layer.zero_grad()
    alpha, beta = torch.tensor([0.5, 2.0, 3.0]).double(), torch.tensor([1.5, 0.1, 4.0]).double()
    layer.rescale(alpha, beta)
    (layer(x) - y).square().sum().backward()
    assert torch.allclose(layer.lora_A.grad, grad_A * alpha[:, None])
    assert torch.allclose(layer.lora_B.grad, grad_B * beta)


def stepped(layer, x, y, knobs, steps):
    """Train one layer as the method does; its optimizer."""
    method = make_method({"name": "scalora", "rank": R, **knobs})
    optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=1e-2, eps=1e-30, weight_decay=0.0)
    model = torch.nn.ModuleList([layer])
    for step in range(1, steps + 1):
        F.mse_loss(layer(x), y).backward()
        method.step(model, optimizer, step, steps)
        optimizer.zero_grad()
    return optimizer


def test_the_first_adam_step_after_a_swap_is_the_same_element_by_element():
    x, y = torch.randn(40, N, dtype=torch.double), torch.randn(40, M, dtype=torch.double)
    layer = a_layer()
    optimizer = stepped(layer, x, y, {"interval": 100}, 5)
    twin = copy.deepcopy(layer)
    twins = torch.optim.AdamW([twin.lora_A, twin.lora_B], lr=1e-2, eps=1e-30, weight_decay=0.0)
    twins.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    moves = []
    for one, its, interval in ((layer, optimizer, 100), (twin, twins, 1)):
        F.mse_loss(one(x), y).backward()
        method = make_method({"name": "scalora", "rank": R, "interval": interval})
        factors = [one.lora_A.detach().clone(), one.lora_B.detach().clone()]
        if interval == 1:
            D_B, D_A = one.lora_A.grad.t() / one.scale, one.lora_B.grad / one.scale
            alpha, beta = scaling(factors[1], factors[0].t(), D_A, D_B, 0.577**-2)
            factors = [factors[0] * beta[:, None], factors[1] * alpha]
        method.step(torch.nn.ModuleList([one]), its, 1, 2)
        moves.append([one.lora_A - factors[0], one.lora_B - factors[1]])
    assert twin.drift is not None
    assert layer.drift is None
    for plain, swapped in zip(*moves, strict=True):
        assert torch.allclose(plain, swapped, atol=1e-12)


def test_the_moments_become_those_of_the_scaled_gradients():
    x, y = torch.randn(40, N, dtype=torch.double), torch.randn(40, M, dtype=torch.double)
    layer = a_layer()
    optimizer = stepped(layer, x, y, {"interval": 100}, 5)
    old = {name: dict(optimizer.state[getattr(layer, name)]) for name in ("lora_A", "lora_B")}
    old = {name: {key: value.clone() for key, value in state.items()} for name, state in old.items()}
    F.mse_loss(layer(x), y).backward()
    grads = {"lora_A": layer.lora_A.grad.clone(), "lora_B": layer.lora_B.grad.clone()}
    D_B, D_A = grads["lora_A"].t() / layer.scale, grads["lora_B"] / layer.scale
    alpha, beta = scaling(layer.lora_B.detach(), layer.lora_A.detach().t(), D_A, D_B, 0.577**-2)
    method = make_method({"name": "scalora", "rank": R, "interval": 1})
    method.step(torch.nn.ModuleList([layer]), optimizer, 0, 1)
    for name, factor in (("lora_B", beta), ("lora_A", alpha[:, None])):
        state, grad = optimizer.state[getattr(layer, name)], grads[name]
        assert torch.allclose(state["exp_avg"], (0.9 * old[name]["exp_avg"] + 0.1 * grad) * factor)
        square = 0.999 * old[name]["exp_avg_sq"] + 0.001 * grad**2
        assert torch.allclose(state["exp_avg_sq"], square * factor**2)
        assert state["step"] == old[name]["step"] + 1


def test_the_columns_get_the_norm_that_is_asked_for():
    x, y = torch.randn(200, N, dtype=torch.double), torch.randn(200, M, dtype=torch.double)
    for norm in (0.3, 1.2):
        layer = a_layer()
        method = make_method({"name": "scalora", "rank": R, "column_norm": norm, "interval": 1})
        optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=0.0)
        F.mse_loss(layer(x), y).backward()
        D_B, D_A = layer.lora_A.grad.t() / layer.scale, layer.lora_B.grad / layer.scale
        alpha, beta = scaling(layer.lora_B.detach(), layer.lora_A.detach().t(), D_A, D_B, norm**-2)
        expected = layer.lora_B * alpha, layer.lora_A * beta[:, None]
        method.step(torch.nn.ModuleList([layer]), optimizer, 0, 1)
        assert torch.allclose(layer.lora_B, expected[0])
        assert torch.allclose(layer.lora_A, expected[1])


def test_the_rank_of_all_steps_outgrows_that_of_one():
    x, y = torch.randn(60, N, dtype=torch.double), torch.randn(60, M, dtype=torch.double)
    ranks = []
    for interval in (1, 10**6):
        torch.manual_seed(3)
        layer = a_layer()
        layer.lora_B.data.zero_()
        stepped(layer, x, y, {"interval": interval}, 12)
        ranks.append(int(torch.linalg.matrix_rank(layer.delta().detach())))
    assert ranks[0] > R
    assert ranks[1] == R


def train(model, method, optimizer, start, stop):
    for step in range(start, stop):
        model.train()
        batch = NextToken().collate(DATA, range(8))
        (NextToken().loss(model, batch) / len(batch.targets)).backward()
        method.step(model, optimizer, step, 12)
        optimizer.zero_grad()
    model.eval()


def attached(name="scalora", seed=0, **knobs):
    method, model = make_method({"name": name, "rank": 2, "alpha": 4, **knobs}), tiny()
    torch.manual_seed(seed)
    method.attach(model)
    return method, model, make_optimizer(method, model, TrainKnobs(lr=1e-2))


def test_without_a_swap_it_is_lora():
    models = []
    for name, knobs in (("lora", {}), ("scalora", {"interval": 1000})):
        method, model, optimizer = attached(name, **knobs)
        train(model, method, optimizer, 0, 6)
        models.append((method, model))
    for name, tensor in models[0][0].state(models[0][1]).items():
        assert torch.equal(tensor, models[1][0].state(models[1][1])[name])


def test_the_base_stays_and_a_resume_is_bitwise(tmp_path):
    method, straight, optimizer = attached(interval=2)
    train(straight, method, optimizer, 0, 10)
    method, model, optimizer = attached(interval=2)
    train(model, method, optimizer, 0, 5)
    save_checkpoint(tmp_path, 5, model, method, optimizer, {})
    method, model, optimizer = attached(interval=2, seed=5)
    load_checkpoint(tmp_path / "step-00000005", model, method, optimizer)
    train(model, method, optimizer, 5, 10)
    assert torch.equal(logits(straight, DATA), logits(model, DATA))
    for (_, one), (_, other) in zip(
        adapted_layers(straight, ScaLoRALinear), adapted_layers(model, ScaLoRALinear), strict=True
    ):
        assert torch.equal(one.drift, other.drift)
        assert torch.equal(one.weight, other.base.weight + other.drift)


@pytest.mark.parametrize("steps", [3, 12])
def test_what_is_saved_is_compact_and_the_same_function(tmp_path, steps):
    method, model, optimizer = attached(interval=2)
    train(model, method, optimizer, 0, steps)
    before = logits(model, DATA)
    said = method.finish(model, lambda: 0.0)
    torch.testing.assert_close(logits(model, DATA), before, atol=1e-4, rtol=1e-4)
    full = [m for _, m in adapted_layers(model, ScaLoRALinear) if m.drift is not None]
    assert f"kept in full in {len(full)} of 14 layers" in said
    for _, module in adapted_layers(model, ScaLoRALinear):
        numbers = module.lora_A.numel() + module.lora_B.numel()
        assert module.drift is not None or numbers < module.in_features * module.out_features
        assert module.drift is None or not module.lora_A.numel()
    save_adapter(tmp_path, model, method, {})
    fresh = tiny()
    method.attach(fresh)
    load_adapter(tmp_path, fresh, method)
    assert torch.equal(logits(fresh.eval(), DATA), logits(model, DATA))
    method.merge(fresh)
    torch.testing.assert_close(logits(fresh, DATA), before, atol=1e-4, rtol=1e-4)


def test_the_numerical_rank_is_measured():
    change = torch.randn(20, 3) @ torch.randn(3, 15)
    A, B = numerical_factors(change)
    assert A.shape == (3, 15)
    torch.testing.assert_close(B @ A, change)
    assert len(numerical_factors(torch.zeros(4, 5))[0]) == 0
    assert len(numerical_factors(torch.randn(6, 5))[0]) == 5


class Quantised(torch.nn.Module):
    in_features = out_features = 4


def test_quantised_or_short_bases_and_dropout_and_other_optimizers_are_refused():
    method = make_method("scalora")
    with pytest.raises(ConfigError, match="the base is bfloat16. Set model.dtype=float32"):
        method.attach(tiny().bfloat16())
    with pytest.raises(ConfigError, match="the base is Quantised"):
        ScaLoRALinear(Quantised(), 2, 1.0)
    with pytest.raises(ConfigError, match="dropout = 0.1: must be 0: dropout acts on the pair"):
        make_method({"name": "scalora", "dropout": 0.1})
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    with pytest.raises(TrainingError, match="cannot rescale 'momentum_buffer'"):
        scale_moments(optimizer, parameter, torch.ones(2))


def test_the_format_of_the_base_is_float32_or_refused():
    assert base_format(ModelKnobs(), make_method("scalora")).name == "float32"
    for dtype in ("bfloat16", "nf4"):
        with pytest.raises(ConfigError, match=f"model.dtype = {dtype}: the method scalora changes the base by exact"):
            base_format(ModelKnobs(dtype=dtype), make_method("scalora"))
    assert base_format(ModelKnobs(dtype="bfloat16"), make_method("lora")).name == "bfloat16"
