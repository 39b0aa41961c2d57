"""Products of a few rows, and attention of one new token a row, are what the plain operations say."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from microplane.nn.attention import MaskSpec, attend
from microplane.nn.cache import Cache
from microplane.nn.ops import few_rows, int8, native, nf4
from microplane.nn.ops.low_rank import factors_kept, low_rank_linear
from microplane.nn.ops.pointwise import gate_by, rms_norm
from microplane.nn.position import Rope
from microplane.nn.quantised import QUANTISED
from microplane.nn.rows import Rows

pytestmark = pytest.mark.skipif(native.library() is None, reason="nothing can be compiled here")

SHAPES = [
    (1, 32, 4),
    (12, 70, 37),
    (33, 576, 48),
    (1, 576, 1536),
    (2, 33, 7),
    (3, 100, 5),
    (4, 64, 9),
    (5, 1, 1),
    (7, 576, 192),
    (8, 70, 31),
]


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


@pytest.fixture
def called(monkeypatch):
    """The operations that were called."""
    assert few_rows.agrees()  # which tries the products, once
    names, run = [], native.run
    monkeypatch.setattr(native, "run", lambda name, *given, **more: names.append(name) or run(name, *given, **more))
    return names


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16(shape, bias, called):
    T, width, outputs = shape
    x, W, b = drawn(T, width), drawn(outputs, width), drawn(outputs) if bias else None
    with torch.inference_mode():
        y = few_rows.linear(x, W, b)
    assert called == ["few_rows"]
    exact = F.linear(x.double(), W.double(), None if b is None else b.double())
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-3 * width**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *itertools.product(QUANTISED, [(1, 64, 5), (3, 128, 7), (5, 576, 32), (8, 192, 9), (12, 320, 70)]),
        *[("int8", (rows, 100, 37)) for rows in (1, 5, 11)],  # its last weights fill no register
    ],
    ids=str,
)
def test_quantised_weights_are_multiplied_as_they_are_stored(kind, shape, dtype, called):
    T, width, outputs = shape
    x, bias = drawn(T, width, dtype=dtype), drawn(outputs, dtype=dtype)
    linear = QUANTISED[kind].of(drawn(outputs, width, dtype=torch.float32), bias, dtype)
    with torch.inference_mode():
        y = linear(x)
    assert called == ["few_rows"] * (few_rows.MOST[dtype] >= T)
    parts = linear.parts if kind == "nf4" else linear.in_int8()
    reference = nf4.dequantise_reference if kind == "nf4" else int8.dequantise_reference
    W = reference(parts, (outputs, width)) if kind == "nf4" else reference(parts)
    exact = F.linear(x.double(), W.double(), bias.double())
    # in bfloat16 each number of NF4's levels is rounded too, as it is where the weight is expanded
    atol = 2**-7 * width**0.5 if (kind, dtype) == ("nf4", torch.bfloat16) else 1e-2
    torch.testing.assert_close(y.double(), exact, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=atol)
    assert linear.to(dtype)._absmax is None  # made anew for another format or device


@pytest.mark.parametrize("width", [63, 130])
def test_a_row_that_is_no_whole_number_of_blocks_is_expanded(width):
    linear = QUANTISED["nf4"].of(drawn(5, width, dtype=torch.float32), None, torch.float32)
    x = drawn(2, width, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x), F.linear(x, linear.weight))


def test_a_row_does_not_depend_on_the_others():
    x, W = drawn(8, 200), drawn(30, 200)  # of more rows the sums are taken in another order
    with torch.inference_mode():
        together = few_rows.linear(x, W, None)
        alone = torch.cat([few_rows.linear(row[None], W, None) for row in x])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("shape", [(1, 96, 5), (3, 576, 33), (8, 64, 16), (20, 96, 40)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_matrix_with_a_low_rank_update(dtype, shape):
    T, width, outputs = shape
    x, W, A, B = (drawn(*size, dtype=dtype) for size in ((T, width), (outputs, width), (3, width), (3, outputs)))
    y = torch.empty(T, outputs, dtype=dtype)
    words = torch.tensor(few_rows.plain(W).matrix(None, A, B))
    native.run("few_rows", words, x, y, T, dtype=dtype)
    low = (x.float() @ A.float().t()).to(dtype).double()
    exact = x.double() @ W.double().t() + low @ B.double()
    rtol, atol = (2**-7, 0.02 * width**0.5) if dtype == torch.bfloat16 else (1e-5, 1e-3)
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=atol)


def test_training_and_validation_multiply_as_ever(called):
    x, W = drawn(2, 64), drawn(3, 64)
    with torch.no_grad():
        assert torch.equal(few_rows.linear(x, W, None), F.linear(x, W))
    few_rows.linear(x.requires_grad_(), W, None).sum().backward()
    assert called == []


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", list(QUANTISED))
def test_a_number_that_no_code_can_have_is_not_lost(kind, number):
    x = drawn(3, 64)
    x[1, 7] = number
    linear = QUANTISED[kind].of(drawn(5, 64, dtype=torch.float32), None, torch.bfloat16)
    with torch.inference_mode():
        y = linear(x)
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_number_that_is_none_stays_in_its_row(threads):
    x, W = drawn(3, 64), drawn(5, 64)
    x[1, 7] = torch.nan
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            y = few_rows.linear(x, W, None)
    finally:
        torch.set_num_threads(before)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("base", ["plain", *QUANTISED])
def test_a_low_rank_update_is_to_the_bit_what_it_is_outside(base, kept):
    x, A, B = drawn(20, 64, dtype=torch.float32), *(torch.nn.Parameter(torch.randn(s)) for s in ((3, 64), (9, 3)))
    W = drawn(9, 64, dtype=torch.float32)
    W = W if base == "plain" else QUANTISED[base].of(W, None, torch.float32)
    for _ in range(2):
        with torch.no_grad():
            wanted = low_rank_linear(x, W, None, A, B, 0.7)
        with torch.inference_mode(), factors_kept() if kept else nullcontext():
            for _ in range(2):
                assert torch.equal(low_rank_linear(x, W, None, A, B, 0.7), wanted)
        with torch.no_grad():
            B += 1  # trained on in between


def test_factors_that_are_made_anew_are_not_kept():
    """As AdaLoRA's, whose singular values are multiplied in each time."""
    x, W = drawn(2, 64, dtype=torch.float32), drawn(9, 64, dtype=torch.float32)
    A, B = torch.randn(3, 64), torch.nn.Parameter(torch.randn(9, 3))
    with torch.inference_mode(), factors_kept():
        for factor in range(1, 6):
            found = low_rank_linear(x, W, None, factor * A, B, 1.0)
            torch.testing.assert_close(found, F.linear(x, W + B @ (factor * A)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("numbers", [(1, 48), (3, 40_000)])
def test_norms_and_gates_are_to_the_bit_what_they_are_outside(numbers):
    x, weight = drawn(*numbers), drawn(numbers[1])
    with torch.no_grad():
        wanted = rms_norm(x, weight, 1e-5), gate_by("silu", x, x + 1)
    with torch.inference_mode():
        assert torch.equal(rms_norm(x, weight, 1e-5), wanted[0])
        assert torch.equal(gate_by("silu", x, x + 1), wanted[1])


def written(steps, dtype, window, native_on, monkeypatch, heads=(6, 2), width=32, turned=True):
    """What attention gives for tokens that are written one by one behind rows of other lengths."""
    torch.manual_seed(3)
    monkeypatch.setenv("MICROPLANE_NATIVE", "1" if native_on else "0")
    H, KV = heads
    lengths = (3, 1, 6)
    cache, found = Cache(2, len(lengths)), []
    rope = Rope(10_000.0)
    with torch.inference_mode():
        for step in range(steps + 1):
            own = lengths if step == 0 else (1,) * len(lengths)
            rows = Rows.of([[0] * n for n in own], starts=cache.lengths)
            mask = MaskSpec(rows, cache.lengths, window)
            angles = rope.angles(rows.positions, width, dtype) if turned else None
            for layer in range(2):
                q, k, v = (drawn(sum(own), n, width, dtype=dtype) for n in (H, KV, KV))
                found.append(attend(q, k, v, mask, 0.3, cache=cache, layer=layer, angles=angles))
            cache.advance(rows)
            if step == 2:
                cache.select([2, 0, 2])
    return torch.cat(found), cache


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_written_tokens_attend_as_the_plain_way_does(dtype, window, turned, monkeypatch, called):
    fast, one = written(70, dtype, window, True, monkeypatch, turned=turned)  # past the first 64 cells
    assert called.count("cached_attention") == 2 * 70
    plain, other = written(70, dtype, window, False, monkeypatch, turned=turned)
    assert one.lengths == other.lengths
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 4e-2}
    torch.testing.assert_close(fast, plain, **close)
    for mine, theirs in zip(one.keys, other.keys, strict=True):
        torch.testing.assert_close(mine[0, :, :60], theirs[0, :, :60], **close)
