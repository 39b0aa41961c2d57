"""Products in 8 bits against their plain references, and what they change in a layer with a low-rank pair."""

from __future__ import annotations

import math

import pytest
import torch

from microplane.errors import MicroplaneWarning
from microplane.nn.ops import int8, native, nf4
from microplane.nn.ops.low_rank import low_rank_linear
from microplane.nn.quantised import Int8Linear, NF4Linear

FORMATS = [torch.float32, torch.bfloat16]


def matrix(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_in_8_bits_are_the_references_to_the_bit(way, dtype, scaled):
    x = matrix(7, 133, dtype=dtype)
    x[3] = 0
    columns = matrix(133, seed=1).abs() if scaled else None
    codes, scale = int8.quantise_rows(x, columns)
    expected = int8.quantise_rows_reference(x, columns)
    assert torch.equal(codes, expected.codes)
    assert torch.equal(scale, expected.scale)
    assert codes[3].abs().max() == 0
    assert codes.abs().amax(1)[:3].tolist() == [127] * 3


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("parts", ["rows", "columns", "bias"])
def test_sums_are_scaled_as_the_reference_scales_them(way, dtype, parts):
    sums = (matrix(5, 70) * 1e5).to(torch.int32)
    columns = matrix(70, seed=1) if parts != "rows" else None
    bias = matrix(70, seed=2, dtype=dtype) if parts == "bias" else None
    rows = matrix(5, 1, seed=3).abs() * 1e-3
    y = int8.scale_sums(sums, rows, columns, bias, dtype)
    assert y.dtype == dtype
    expected = int8.scale_sums_reference(sums, rows, columns, bias, dtype)
    torch.testing.assert_close(y, expected, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)


def test_a_bias_without_a_scale_of_columns_is_added_too(way):
    sums, rows, bias = torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 1), torch.tensor([1.0, 2.0, 3.0])
    assert int8.scale_sums(sums, rows, None, bias, torch.float32).tolist() == [[2.0, 3.0, 4.0]] * 2


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_product_and_its_gradient_are_the_references(way, dtype):
    x, weight = matrix(9, 64, dtype=dtype), int8.quantise(matrix(48, 64, seed=1))
    torch.testing.assert_close(int8.product(x, weight), int8.product_reference(x, weight))
    grad = matrix(9, 48, seed=2, dtype=dtype)
    torch.testing.assert_close(int8.product_back(grad, weight), int8.product_back_reference(grad, weight))


def test_a_product_is_near_the_exact_one(way):
    x, weight = matrix(64, 512), int8.quantise(matrix(256, 512, seed=1))
    exact = x @ int8.dequantise(weight).t()
    assert (int8.product(x, weight) - exact).norm() < 0.012 * exact.norm()
    grad = matrix(64, 256, seed=2)
    exact = grad @ int8.dequantise(weight)
    assert (int8.product_back(grad, weight) - exact).norm() < 0.012 * exact.norm()


def test_what_a_token_gets_does_not_depend_on_its_neighbours(way):
    x, weight = matrix(8, 64), int8.quantise(matrix(48, 64, seed=1))
    assert torch.equal(int8.product(x, weight)[5:6], int8.product(x[5:6], weight))


@pytest.mark.parametrize("shape", [(6, 64), (40, 192)])
def test_nf4_in_8_bits_is_the_reference_and_near_its_weight(way, shape):
    weight = nf4.quantise(matrix(*shape))
    codes, scale = nf4.to_int8(weight, shape)
    expected = nf4.to_int8_reference(weight, shape)
    assert torch.equal(codes, expected.codes)
    assert torch.equal(scale, expected.scale)
    exact = nf4.dequantise(weight, shape)
    assert (codes.float() * scale - exact).norm() < 0.01 * exact.norm()


def test_nf4_in_bfloat16_is_the_reference_to_the_bit(way):
    weight = nf4.quantise(matrix(64, 192))
    expected = nf4.dequantise_reference(weight, (64, 192), torch.bfloat16)
    assert torch.equal(nf4.dequantise(weight, (64, 192), torch.bfloat16), expected)


@pytest.mark.parametrize("kind", [Int8Linear, NF4Linear])
@pytest.mark.parametrize("width", [128, 80])  # 80: blocks of 64 that go on from row to row
@pytest.mark.parametrize("cached", [False, True])
def test_a_layer_in_8_bits_is_near_the_same_layer_in_float32(way, kind, width, cached):
    weight, bias = matrix(96, width) * 0.1, matrix(96, seed=4)
    exact = kind.of(weight, bias, torch.float32)
    narrow = kind.of(weight, bias, torch.float32, cached, in_8_bits=True)
    A, B = matrix(4, width, seed=2) * 0.1, matrix(96, 4, seed=3) * 0.1
    results = []
    for layer in (exact, narrow, narrow):
        pair = [A.clone().requires_grad_(), B.clone().requires_grad_()]
        x = matrix(2, 11, width, seed=5).requires_grad_()
        y = low_rank_linear(x, layer, layer.bias, *pair, 2.0) + layer(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(factor.grad for factor in pair)])
    for first, second in zip(results[0], results[1], strict=True):
        assert (first - second).norm() < 0.03 * first.norm()
    assert all(torch.equal(first, second) for first, second in zip(results[1], results[2], strict=True))


def test_a_library_that_cannot_be_compiled_is_done_without(monkeypatch, tmp_path):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    native._built.cache_clear()
    try:
        with pytest.warns(MicroplaneWarning, match="compiled operations are off"):
            assert native.library() is None
        x, weight = matrix(3, 64), int8.quantise(matrix(5, 64, seed=1))
        torch.testing.assert_close(int8.product(x, weight), int8.product_reference(x, weight))
        assert not list(tmp_path.rglob("*.so"))
    finally:
        native._built.cache_clear()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_number_stays_none_in_the_products_of_its_row_alone(way, dtype, scaled, wrong):
    """Also as the last of a row, behind larger numbers."""
    x = torch.randn(5, 67).to(dtype)
    x[1, 0] = x[3, -1] = wrong
    columns = torch.rand(67) + 0.5 if scaled else None
    rows, expected = int8.quantise_rows(x, columns), int8.quantise_rows_reference(x, columns)
    assert rows.scale.isfinite().view(-1).tolist() == [True, False, True, False, True]
    assert torch.equal(rows.codes[::2], expected.codes[::2])
    if not scaled:
        y = int8.product(x, int8.quantise(torch.randn(6, 67)))
        assert y.isfinite().all(1).tolist() == [True, False, True, False, True]
        assert not y[1].isfinite().any()


def test_a_block_of_nf4_whose_scale_is_no_number_makes_none_of_its_row(way):
    weight = nf4.quantise(torch.randn(4, 192))
    absmax = nf4.dequantise_absmax(weight)
    absmax[4] = math.nan  # the middle block of the second row
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nf4, "dequantise_absmax", lambda weight: absmax)
        scale = nf4.to_int8(weight, (4, 192)).scale
    assert scale.isnan().view(-1).tolist() == [False, True, False, False]
