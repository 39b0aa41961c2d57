"""PaCA: the columns are the weight, what is kept for backward, and files that are damaged."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from microplane.errors import AdapterError, ConfigError
from microplane.methods import make_method
from microplane.methods.adapted_linear import AdaptedLinear
from microplane.methods.lora import LoRALinear
from microplane.methods.method import trainable_parameters
from microplane.methods.paca import PaCALinear
from microplane.nn.quantised import QUANTISED
from tests.methods.kit import attached, layers, loss, shake


def layer(bias=True, dtype=torch.float32, kind=None) -> PaCALinear:
    torch.manual_seed(0)
    base = torch.nn.Linear(12, 9, bias=bias).requires_grad_(False).to(dtype)
    if kind is not None:
        base = QUANTISED[kind].of(base.weight, base.bias, dtype)
    made = PaCALinear(base, rank=4, scale=1.5)
    torch.nn.init.normal_(made.paca_change)
    return made


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(12,), (7, 12), (2, 7, 12)])
def test_it_is_the_merged_layer_to_the_bit_and_leaves_the_weight_as_it_was(bias, dtype, shape):
    made = layer(bias, dtype)
    before, x = made.base.weight.clone(), torch.randn(shape, dtype=dtype)
    y = made(x)
    assert torch.equal(made.base.weight, before)
    assert y.dtype == dtype
    assert torch.equal(y, F.linear(x, made.merged().weight, made.base.bias))
    changed = (made.merged().weight != before).any(0)
    assert changed.nonzero().flatten().tolist() == made.paca_columns.tolist()


@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
def test_gradients_are_those_of_the_formula(kind):
    made = layer(kind=kind)
    x, weight = torch.randn(2, 7, 12, requires_grad=True), torch.randn(2, 7, 9)
    y = made(x)
    wanted = F.linear(x, made.base.weight + made.delta(), made.base.bias)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    inputs = [x, made.paca_change]
    found, true = (torch.autograd.grad(result, inputs, weight) for result in (y, wanted))
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_backward_keeps_the_inputs_of_the_columns_alone():
    """LoRA keeps the whole input; this one r of its numbers a token."""

    def kept(made: AdaptedLinear) -> int:
        x, sizes = torch.randn(64, 12, requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            made(x)
        return sum(sizes)

    base = torch.nn.Linear(12, 9).requires_grad_(False)
    assert kept(layer()) == 64 * 4
    assert kept(LoRALinear(base, 4, 1.0, 0.0)) >= 64 * 12


def test_the_pair_is_the_change_and_exact():
    made = layer()
    A, B = made.low_rank()
    assert torch.equal(B @ A, made.delta())
    assert A.sum(1).tolist() == [1.0] * 4


def test_the_seed_draws_different_columns_for_each_layer_and_the_same_again():
    drawn = [[layer.paca_columns.tolist() for layer in layers(attached(name="paca", rank=3)[1]).values()] for _ in "ab"]
    assert drawn[0] == drawn[1]
    assert len({tuple(columns) for columns in drawn[0]}) > 1
    assert all(columns == sorted(set(columns)) for columns in drawn[0])


def test_it_trains_r_numbers_an_output_and_the_base_gets_no_gradient():
    _, model = attached(name="paca", rank=3)
    assert trainable_parameters(model) == sum(3 * layer.out_features for layer in layers(model).values())
    loss(model).backward()
    assert all(layer.paca_change.grad.any() and layer.base.weight.grad is None for layer in layers(model).values())


def test_an_error_in_the_product_leaves_the_weight_as_it_was():
    made = layer()
    before = made.base.weight.clone()
    with pytest.raises(RuntimeError, match="dtype"):
        made(torch.randn(3, 12, dtype=torch.float64))
    assert torch.equal(made.base.weight, before)


def test_alpha_is_divided_by_the_rank():
    wrapped = make_method({"name": "paca", "rank": 4, "alpha": 8}).wrap(torch.nn.Linear(12, 9))
    assert wrapped.scale == 2.0


def test_more_columns_than_inputs_are_refused():
    with pytest.raises(ConfigError, match=r"method.rank = 40: a layer of this model has 32 inputs, so 32 columns"):
        attached(name="paca", rank=40)


@pytest.mark.parametrize("columns", [[0, 1, 1], [0, 1, 32], [-1, 0, 1], [0.0, 1.0, 2.0]], ids=str)
def test_damaged_columns_are_refused_and_change_nothing(columns):
    method, model = attached(name="paca", rank=3, targets=["q"])
    shake(model)
    state = {name: tensor.detach().clone() for name, tensor in method.state(model).items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = next(name for name in state if name.endswith("paca_columns"))
    state[name] = torch.tensor(columns)
    with pytest.raises(
        AdapterError, match="paca_columns is damaged: it must hold different whole numbers from 0 to 31"
    ):
        method.load(model, state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
