"""Dropout of the update's input in the low-rank family: the mask, the formula that it is in, and what decides it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import microplane
from microplane.methods import make_method
from microplane.methods.adapted_linear import AdaptedLinear
from microplane.nn.ops.dropout import STEPS, apply_dropout, draw_seed, keep_steps
from microplane.nn.ops.low_rank import low_rank_linear, low_rank_linear_reference
from microplane.nn.quantised import Int8Linear
from tests.methods.kit import shake

P, SEED = 0.3, 7
KNOBS = [
    {"name": "lora", "rank": 3},
    {"name": "lora-fa", "rank": 3},
    {"name": "dora", "rank": 3},
    {"name": "adalora", "rank": 2, "initial_rank": 3},
    {"name": "lora", "rank": "auto"},
    {"name": "vera", "rank": 5},
]


class One(nn.Module):
    """A single linear layer that methods find as `q`."""

    def __init__(self, bias: bool):
        super().__init__()
        self.q = nn.Linear(12, 9, bias=bias)

    def hf_names(self):
        return {name: name for name, _ in self.named_parameters()}


def layer_of(knobs, bias=True) -> AdaptedLinear:
    torch.manual_seed(0)
    model = One(bias)
    make_method(knobs | {"targets": ["q"], "dropout": P}).attach(model)
    shake(model, 0.3)
    if knobs["name"] == "lora" and knobs["rank"] == "auto":
        model.q.grow(2, born=1, seed=0)
        shake(model, 0.3)
    return model.q.double().train()


def formula(layer: AdaptedLinear, x: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    """W x + change(x~) + bias, with what the layer changes in W taken as it is."""
    changed = layer.delta()
    if hasattr(layer, "lora_magnitude_vector"):  # DoRA's length is a constant for the gradient
        A, B = layer.factors()
        whole = layer.base.weight + layer.scale * B @ A
        changed = (layer.lora_magnitude_vector / whole.detach().norm(dim=1))[:, None] * whole - layer.base.weight
    return layer.base(x) + F.linear(dropped, changed)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_value_and_gradients_are_those_of_the_formula_with_the_same_mask(knobs, bias):
    layer = layer_of(knobs, bias)
    x = torch.randn(40, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 9, dtype=torch.float64)
    torch.manual_seed(SEED)
    mask = apply_dropout(torch.ones_like(x), P, draw_seed()).detach()
    assert set(mask.unique().tolist()) == {0.0, STEPS / keep_steps(P)}
    wanted = formula(layer, x, x * mask)
    torch.manual_seed(SEED)
    y = layer(x)
    torch.testing.assert_close(y, wanted)
    inputs = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    for found, true in zip(
        torch.autograd.grad(y, inputs, weight), torch.autograd.grad(wanted, inputs, weight), strict=True
    ):
        torch.testing.assert_close(found, true)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_the_seed_decides_and_it_is_off_outside_of_training(knobs):
    layer, x = layer_of(knobs), torch.randn(40, 12, dtype=torch.float64)

    def output(seed):
        torch.manual_seed(seed)
        return layer(x)

    assert torch.equal(output(1), output(1))
    assert not torch.allclose(output(1), output(2))
    layer.eval()
    state = torch.get_rng_state()
    torch.testing.assert_close(layer(x), layer.merged().double()(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state), "a random number was used up"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_that_is_dropped_and_the_scaling(dtype):
    """Seen through a pair that is the identity: what comes out is x, or 0, over the share that is kept."""
    n, p = 200, 0.25
    x, zero, one = torch.ones(n, n, dtype=dtype), torch.zeros(n, n, dtype=dtype), torch.eye(n)
    torch.manual_seed(0)
    y = low_rank_linear(x, zero, None, one, one, 1.0, p)
    kept = (y != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 4 * (p * (1 - p) / n**2) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], STEPS / keep_steps(p)))


@pytest.mark.parametrize("shape", [(6, 10), (2, 3, 10)])
@pytest.mark.parametrize("quantised", [True, False])
def test_fused_and_reference_agree_on_every_kind_of_base_and_input(shape, quantised):
    torch.manual_seed(0)
    W, bias, A, B = torch.randn(8, 10), torch.randn(8), torch.randn(3, 10), torch.randn(8, 3)
    base = Int8Linear.of(W, bias, torch.float32) if quantised else W
    W = base.weight if quantised else W
    x = torch.randn(shape, requires_grad=True)
    A.requires_grad_(True)
    results = []
    for run in (low_rank_linear, low_rank_linear_reference):
        torch.manual_seed(SEED)
        y = run(x, base if run is low_rank_linear else W, bias, A, B, 2.0, 0.4)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, A])])
    for found, true in zip(*results, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-4)


def test_no_input_is_kept_twice_for_backward():
    """The mask is made again from its seed: dropout costs no memory beyond that of the layer without it."""

    def kept(p):
        x, sizes = torch.randn(64, 32, requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            low_rank_linear(
                x, torch.randn(16, 32), None, torch.randn(4, 32).requires_grad_(True), torch.randn(16, 4), 1.0, p
            )
        return sum(sizes)

    assert kept(0.5) == kept(0.0)


def test_no_method_draws_a_mask_by_torch():
    folder = Path(microplane.__file__).parent / "methods"
    for path in folder.rglob("*.py"):
        called = {
            ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        }
        assert not called & {"F.dropout", "nn.Dropout", "torch.dropout", "nn.functional.dropout"}, path
