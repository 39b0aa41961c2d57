"""Quantised linear layers: the function and gradient of the dequantised layer, and nothing of it kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from microplane.methods.lora import LoRALinear
from microplane.nn.ops import int8
from microplane.nn.ops.low_rank import low_rank_linear_reference
from microplane.nn.quantised import QUANTISED, Int8Linear, QuantisedLinear, bytes_held, first_not_finite, weight_count

KINDS = pytest.mark.parametrize("kind", QUANTISED)
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def layer(kind, dtype=torch.float32, bias=True, cached=False):
    torch.manual_seed(3)
    plain = nn.Linear(96, 80, bias=bias)
    return QUANTISED[kind].of(plain.weight, plain.bias, dtype, cached), plain


@KINDS
@BOTH
def test_output_and_gradient_are_those_of_the_dequantised_layer(kind, dtype):
    quantised, plain = layer(kind, dtype)
    weight = quantised.weight
    assert weight.dtype == dtype
    assert (weight.float() - plain.weight).abs().max() < 0.2 * plain.weight.abs().max()
    x = torch.randn(2, 7, 96, dtype=dtype)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = quantised(one), F.linear(other, weight, quantised.bias)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(one.grad, other.grad)


@KINDS
def test_its_parts_do_not_train_and_its_bias_may(kind):
    quantised, _ = layer(kind)
    assert [name for name, _ in quantised.named_parameters()] == ["bias"]
    assert not quantised.bias.requires_grad
    quantised.bias.requires_grad_()
    x = torch.randn(5, 96, requires_grad=True)
    quantised(x).sum().backward()
    assert torch.equal(quantised.bias.grad, torch.full((80,), 5.0))
    assert all(buffer.grad is None and not buffer.requires_grad for buffer in quantised.buffers())


def saved_by(compute):
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = compute()
    return y, kept


@KINDS
def test_nothing_of_the_weight_is_kept_for_backward(kind):
    quantised, _ = layer(kind)
    adapted = LoRALinear(quantised, rank=4, scale=2.0, dropout=0.0)
    for module in (quantised, adapted):
        x = torch.randn(6, 96, requires_grad=True)
        y, kept = saved_by(lambda module=module, x=x: module(x))
        assert all(tensor.numel() < 80 * 96 for tensor in kept)
        y.sum().backward()


@KINDS
@BOTH
def test_two_layers_share_the_memory_of_their_weights(kind, dtype):
    """The second product overwrites what the first has used; gradients must not see it."""
    torch.manual_seed(0)
    layers = [QUANTISED[kind].of(torch.randn(32, 32), None, dtype) for _ in range(3)]
    x = torch.randn(4, 32, dtype=dtype)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = one, other
    for quantised in layers:
        y, expected = quantised(y), F.linear(expected, quantised.weight)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(one.grad, other.grad)


@KINDS
def test_lora_on_it_is_the_reference_on_the_dequantised_weight(kind):
    quantised, _ = layer(kind)
    adapted = LoRALinear(quantised, rank=4, scale=2.0, dropout=0.0)
    nn.init.normal_(adapted.lora_B)
    for shape in ((6, 96), (2, 3, 96)):
        x = torch.randn(shape, requires_grad=True)
        adapted.zero_grad()
        y = adapted(x)
        y.square().sum().backward()
        found = [x.grad, adapted.lora_A.grad, adapted.lora_B.grad]
        x.grad, adapted.lora_A.grad, adapted.lora_B.grad = None, None, None
        args = quantised.weight, quantised.bias, adapted.lora_A, adapted.lora_B, 2.0
        expected = low_rank_linear_reference(x, *args)
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(found, [x.grad, adapted.lora_A.grad, adapted.lora_B.grad], rtol=1e-4, atol=1e-4)


@KINDS
def test_cached_it_keeps_its_weight_in_the_format_of_its_products(kind):
    quantised, _ = layer(kind, torch.bfloat16, cached=True)
    assert quantised.weight is not quantised.weight
    x = torch.randn(4, 96, dtype=torch.bfloat16)
    y = quantised(x)
    assert quantised.weight is quantised.weight
    assert quantised.weight.dtype == torch.bfloat16
    assert torch.equal(y, layer(kind, torch.bfloat16)[0](x))


@KINDS
def test_another_format_changes_its_products_and_not_its_scales(kind):
    quantised, _ = layer(kind)
    before = {name: tensor.clone() for name, tensor in quantised.named_buffers()}
    exact = quantised.weight
    quantised.bfloat16()
    assert quantised.dtype == quantised.weight.dtype == quantised.bias.dtype == torch.bfloat16
    assert all(torch.equal(before[name], tensor) for name, tensor in quantised.named_buffers())
    assert torch.equal(quantised.float().weight, exact)


@KINDS
def test_weights_are_counted_as_what_they_stand_for(kind):
    quantised, plain = layer(kind)
    assert weight_count(quantised) == weight_count(plain) == 80 * 96 + 80
    stored = {"nf4": 80 * 96 // 2 + 120 + 4 + 4, "int8": 80 * 96 + 4 * 80}[kind]
    assert bytes_held(quantised) == stored + 4 * 80


@KINDS
def test_on_the_meta_device_it_is_room_for_the_same_parts(kind):
    real, plain = layer(kind)
    meta = QUANTISED[kind].of(plain.weight.to("meta"), plain.bias.to("meta"), torch.float32)
    assert isinstance(meta, QuantisedLinear)
    assert meta.weight.is_meta
    shapes = [{n: (t.shape, t.dtype) for n, t in m.state_dict().items()} for m in (real, meta)]
    assert shapes[0] == shapes[1]
    meta.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(meta.weight, real.weight)


def test_int8_agrees_with_its_reference_and_its_error_is_half_a_scale(monkeypatch):
    monkeypatch.setattr(int8, "CHUNK", 200)
    weight = torch.randn(33, 70)
    weight[4] = 0
    packed = int8.quantise(weight)
    assert torch.equal(packed.scale, weight.abs().amax(1, keepdim=True) / 127)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(int8.dequantise(packed, dtype), int8.dequantise_reference(packed, dtype))
    back = int8.dequantise(packed)
    assert ((back - weight).abs() <= packed.scale * (0.5 + 1e-5)).all()
    assert (back[4] == 0).all()
    assert packed.codes.abs().amax(1).tolist() == [127] * 4 + [0] + [127] * 28
    again = int8.quantise(back)
    assert torch.equal(again.codes, packed.codes)


@pytest.mark.parametrize("kind", QUANTISED.values())
def test_what_is_kept_of_a_weight_is_made_anew_in_another_format(kind):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    linear = kind.of(weight, None, torch.float32, cached=True)
    x = torch.ones(40, 64)
    assert linear(x).dtype == torch.float32
    kept = linear.weight
    assert linear.weight is kept
    linear.to(torch.bfloat16)
    assert (linear.dtype, linear.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    assert linear(x.bfloat16()).dtype == torch.bfloat16
    scales = [
        part
        for part in linear.parts_type._fields
        if part not in ("codes",) and getattr(linear, part).is_floating_point()
    ]
    assert all(getattr(linear, part).dtype == torch.float32 for part in scales), "scales keep their precision"


def test_the_first_tensor_that_is_not_finite_is_named_and_a_mask_is_none():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Int8Linear.of(torch.ones(4, 4), None, torch.float32))
    model.register_buffer("mask", torch.full((3,), -torch.inf))
    assert first_not_finite(model) is None
    model[1].scale[2] = torch.inf
    assert first_not_finite(model) == "1.scale"
    model.mask[0] = torch.nan
    model[1].scale[2] = 1.0
    assert first_not_finite(model) == "mask"
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    model.mask[0] = 0.0
    assert first_not_finite(model) is None, "a sum may overflow where no number does"
    assert weight_count(model) == 16 + 4 + 16
