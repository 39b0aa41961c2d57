"""Fast operations against their plain references: values and gradients."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from microplane.nn import number_format
from microplane.nn.layers import RMSNorm
from microplane.nn.number_format import NumberFormat, fastest_dtype, measured
from microplane.nn.ops import linear_cross_entropy as loss
from microplane.nn.ops.dropout import dropout, dropout_mask, dropout_reference
from microplane.nn.ops.linear_cross_entropy import (
    CHUNK,
    chunked_cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from microplane.nn.ops.low_rank import low_rank_linear, low_rank_linear_reference, row_norms, row_norms_reference
from microplane.nn.ops.pointwise import (
    GATES,
    gate_by,
    gate_reference,
    layer_norm,
    rms_norm,
    rms_norm_reference,
    softmax,
    softmax_reference,
)
from microplane.nn.rows import Rows, from_grid, from_heads, to_heads


def leaves(*shapes, dtype=torch.float64):
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def both(fast, plain, inputs, *rest):
    """Output and gradients of a fast operation and of its reference, for the same weighted sum of outputs."""
    results = []
    for function in (fast, plain):
        output = function(*inputs, *rest)
        weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
        results.append((output, torch.autograd.grad((output * weights).sum(), inputs)))
    return results


def assert_agree(results, **tolerance):
    (output, grads), (wanted, wanted_grads) = results
    torch.testing.assert_close(output, wanted, **tolerance)
    for grad, reference in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, reference, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(7, 24), (5, 3, 16), (100, 257)])
def test_rms_norm(way, shape, dtype):
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    assert_agree(both(rms_norm, rms_norm_reference, leaves(shape, shape[-1:], dtype=dtype), 1e-5), **tolerance)


def test_rms_norm_in_bfloat16_rounds_as_the_reference(way):
    x, weight = leaves((64, 48), (48,), dtype=torch.bfloat16)
    (output, grads), (wanted, wanted_grads) = both(rms_norm, rms_norm_reference, [x, weight], 1e-5)
    torch.testing.assert_close(output, wanted, atol=0, rtol=0.008)
    torch.testing.assert_close(grads[0], wanted_grads[0], atol=0.03, rtol=0.02)


def test_a_float32_weight_norms_bfloat16_as_the_reference(way):
    (x,), (weight,) = leaves((64, 48), dtype=torch.bfloat16), leaves((48,), dtype=torch.float32)
    (output, grads), (wanted, wanted_grads) = both(rms_norm, rms_norm_reference, [x, weight], 1e-5)
    assert torch.equal(output, wanted)
    torch.testing.assert_close(grads[0], wanted_grads[0], atol=0.03, rtol=0.02)
    torch.testing.assert_close(grads[1], wanted_grads[1], atol=0.1, rtol=0.02)


@pytest.mark.parametrize("shape", [(4, 5, 7), (1, 5, 7), (2, 1, 1, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_softmax(way, shape, dtype):
    assert_agree(both(softmax, softmax_reference, leaves((2, 4, 5, 7), shape, dtype=dtype)))
    (scores,) = leaves((2, 4, 5, 7), dtype=dtype)
    assert_agree(both(softmax, softmax_reference, [scores]))


def test_what_softmax_adds_may_lie_in_memory_as_it_likes(way):
    scores, turned = leaves((2, 4, 5, 7), (2, 4, 7, 5), dtype=torch.float32)
    assert_agree(both(softmax, softmax_reference, [scores], turned.detach().transpose(-1, -2)))


def test_softmax_of_bfloat16(way):
    (scores,) = leaves((3, 4, 9), dtype=torch.bfloat16)
    hidden = torch.zeros(3, 1, 9, dtype=torch.bfloat16).masked_fill(torch.arange(9) > 6, -torch.inf)
    (output, grads), (wanted, wanted_grads) = both(softmax, softmax_reference, [scores], hidden)
    torch.testing.assert_close(output, wanted, atol=0, rtol=0.008)
    torch.testing.assert_close(grads[0], wanted_grads[0], atol=0.01, rtol=0.02)
    assert not output[..., 7:].any()


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gates(way, activation, dtype):
    def bound(function):
        return lambda gate, up: function(activation, gate * 5, up)

    tolerances = {torch.bfloat16: {"rtol": 0.02, "atol": 0.05}, torch.float32: {"rtol": 1e-5, "atol": 1e-4}}
    tolerance = tolerances.get(dtype, {})
    inputs = leaves((70, 333), (70, 333), dtype=dtype)
    assert_agree(both(bound(gate_by), bound(gate_reference), inputs), **tolerance)


@pytest.mark.parametrize("activation", GATES)
def test_gates_of_large_numbers_are_finite(way, activation):
    gate = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    y = gate_by(activation, gate, torch.ones(5))
    y.sum().backward()
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, 0.0, 100.0, 1e4]))
    torch.testing.assert_close(gate.grad, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_a_bias_that_trains_in_softmax_with_dropout(way):
    """Against the same mask applied to the reference's shares."""
    scores, bias = leaves((3, 4, 5, 37), (1, 4, 5, 37), dtype=torch.float32)
    torch.manual_seed(3)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    torch.manual_seed(3)
    mask = dropout_mask(scores.shape, 0.3, seed)

    def plain(scores, bias):
        return dropout_reference(softmax_reference(scores, bias), mask, 0.3)

    assert_agree(both(lambda scores, bias: softmax(scores, bias, 0.3), plain, [scores, bias]))


def layer_norm_reference(x, weight, bias, eps):
    bias = None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias, eps)


@pytest.mark.parametrize("shape", [(7, 24), (5, 3, 16), (100, 257)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_layer_norm(way, shape, biased, dtype):
    (x,) = leaves(shape, dtype=dtype)
    parts = leaves(*[shape[-1:]] * (1 + biased), dtype=torch.float32 if dtype == torch.bfloat16 else dtype)

    def bound(function):
        return lambda x, weight, bias=None: function(x, weight, bias, 1e-5)

    results = both(bound(layer_norm), bound(layer_norm_reference), [x, *parts])
    assert results[0][0].dtype == dtype
    if dtype == torch.bfloat16:
        for got, wanted in zip(*((output, *grads) for output, grads in results), strict=True):
            assert (got.float() - wanted.float()).norm() < 0.01 * wanted.float().norm()
    else:
        assert_agree(results, **({"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}))


@pytest.mark.parametrize("bias", [True, False])
def test_low_rank_linear(bias):
    x, A, B = leaves((9, 6), (3, 6), (5, 3))
    W, b = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64) if bias else None

    def bound(function):
        return lambda x, A, B: function(x, W, b, A, B, 0.7)

    assert_agree(both(bound(low_rank_linear), bound(low_rank_linear_reference), [x, A, B]))


def test_row_norms():
    W, A, B = torch.randn(5, 6).double(), torch.randn(3, 6).double(), torch.randn(5, 3).double()
    squares = W.square().sum(1)
    torch.testing.assert_close(row_norms(W, squares, A, B, 0.7), row_norms_reference(W, A, B, 0.7))
    assert torch.equal(row_norms(W, squares, A, 0 * B, 0.7), squares.sqrt())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("positions", [1, CHUNK - 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_linear_cross_entropy(way, softcap, positions, label_smoothing, biased, dtype, monkeypatch):
    monkeypatch.setattr(loss, "MOST", CHUNK // 4)  # several chunks, and a last one that is short
    hidden, weight = leaves((positions, 8), (31, 8), dtype=dtype)
    targets = torch.randint(0, 31, (positions,))
    rest = (targets, softcap, label_smoothing, torch.randn(31, dtype=dtype) if biased else None)
    fast, plain = both(linear_cross_entropy, linear_cross_entropy_reference, [hidden, weight], *rest)
    # the reference sums in float32
    assert fast[0].item() == pytest.approx(plain[0].item(), rel=1e-5)
    for grad, wanted in zip(fast[1], plain[1], strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_bias_of_a_head_trains(way, dtype, softcap, label_smoothing, alone, monkeypatch):
    """As GPT-J's and Phi's, in full or with nothing else; its gradient is summed in float32 over the chunks."""
    monkeypatch.setattr(loss, "MOST", CHUNK // 4)
    hidden, weight, bias = leaves((2 * CHUNK + 5, 8), (31, 8), (31,), dtype=torch.promote_types(dtype, torch.float32))
    targets = torch.randint(0, 31, (len(hidden),))
    trained = [bias] if alone else [hidden, weight, bias]
    low = hidden.to(dtype).detach() if alone else hidden.to(dtype)
    fast = linear_cross_entropy(low, weight.detach() if alone else weight, targets, softcap, label_smoothing, bias)
    plain = linear_cross_entropy_reference(hidden, weight, targets, softcap, label_smoothing, bias)
    grads, wanted = torch.autograd.grad(fast, trained), torch.autograd.grad(plain, trained)
    assert grads[-1].dtype == bias.dtype
    for grad, other in zip(grads, wanted, strict=True):
        assert (grad - other).norm() < (0.01 if dtype == torch.bfloat16 else 1e-5) * other.norm()


def test_without_targets_there_is_no_gradient(way, monkeypatch):
    """As in a micro-batch whose rows train nothing: memory that held something else must not pass for a gradient."""
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: torch.full_like(x, 7.0, **options))
    hidden, weight = leaves((0, 16), (31, 16), dtype=torch.float32)
    total = linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total.item() == 0
    assert not weight.grad.any()


def test_the_loss_of_huge_logits_is_finite(way):
    hidden = torch.full((2, 4), 200.0, requires_grad=True)
    weight = torch.randn(10, 4) * 50
    total = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_float32_weight_with_hidden_states_in_bfloat16(way, softcap, label_smoothing, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", 32 * 16)  # several, and a last one that is short
    monkeypatch.setattr(loss, "MOST", CHUNK // 4)
    hidden, weight = leaves((3 * CHUNK, 16), (83, 16), dtype=torch.float32)
    low = hidden.detach().bfloat16().requires_grad_()
    targets = torch.randint(0, 83, (len(hidden),))
    total = linear_cross_entropy(low, weight, targets, softcap, label_smoothing)
    grad_low, grad_weight = torch.autograd.grad(total, [low, weight])
    assert (grad_low.dtype, grad_weight.dtype) == (torch.bfloat16, torch.float32)
    exact = linear_cross_entropy_reference(hidden, weight, targets, softcap, label_smoothing)
    wanted_hidden, wanted_weight = torch.autograd.grad(exact, [hidden, weight])
    assert total.item() == pytest.approx(exact.item(), rel=2e-3)
    for grad, wanted in ((grad_low, wanted_hidden), (grad_weight, wanted_weight)):
        assert (grad - wanted).norm() < 0.01 * wanted.norm()


def test_the_weights_gradient_is_summed_in_float32(way, monkeypatch):
    """Chunk by chunk the same small gradient: a sum in bfloat16 would stop at 256 times the first one."""
    monkeypatch.setattr(loss, "MOST", CHUNK // 4)
    chunks = 600
    hidden = torch.ones(chunks * CHUNK, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(len(hidden), dtype=torch.long)).backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[-0.5], [0.5]]) * len(hidden))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_any_head(label_smoothing):
    hidden, weight = leaves((2 * CHUNK + 5, 8), (31, 8), dtype=torch.float32)
    targets = torch.randint(0, 31, (len(hidden),))
    head = nn.Linear(8, 31, bias=False)
    head.weight = nn.Parameter(weight.detach().clone())
    total = chunked_cross_entropy(hidden, head, targets, label_smoothing)
    wanted = linear_cross_entropy_reference(hidden, weight, targets, None, label_smoothing)
    torch.testing.assert_close(total, wanted)
    total.backward()
    grad = hidden.grad.clone()
    wanted_hidden, wanted_weight = torch.autograd.grad(wanted, [hidden, weight])
    torch.testing.assert_close(grad, wanted_hidden)
    torch.testing.assert_close(head.weight.grad, wanted_weight)


@pytest.mark.parametrize("lengths", [(3, 1, 4), (2, 2)])
def test_rows_go_to_a_rectangle_and_back(lengths):
    rows = Rows.of([list(range(n)) for n in lengths])
    x = torch.randn(sum(lengths), 3, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(from_heads(to_heads(x, rows), rows), x)
    assert torch.autograd.gradcheck(lambda x: from_heads(to_heads(x, rows).sin(), rows), x)
    grid = to_heads(x, rows)  # (B, H, S, Dh)
    for b, n in enumerate(lengths):
        start = sum(lengths[:b])
        assert torch.equal(grid[b, :, :n].transpose(0, 1), x[start : start + n])
    torch.testing.assert_close(from_grid(grid.transpose(1, 2), rows), x)


def test_rows_from_either_side_of_padding():
    left = Rows.from_padded(torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]]))
    right = Rows.from_padded(torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert left.ids.tolist() == right.ids.tolist() == [5, 6, 7, 8, 9]
    assert left.positions.tolist() == [0, 1, 0, 1, 2]
    assert left.last.tolist() == [1, 4]


def test_the_number_format_is_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path))
    first = measured()
    assert all(seconds > 0 for seconds in first.values())
    assert measured() == first
    assert fastest_dtype() in (torch.float32, torch.bfloat16)
    file = next((tmp_path / "number_format").iterdir())
    for seconds, wanted in (((1.0, 0.95), torch.float32), ((1.0, 0.5), torch.bfloat16), ((1.0, 40.0), torch.float32)):
        file.write_text(json.dumps({"seconds": dict(zip(("float32", "bfloat16"), seconds, strict=True))}))
        assert fastest_dtype() == wanted
    file.write_text("not json")
    assert all(seconds > 0 for seconds in measured().values())


def test_a_format_that_is_hopeless_is_not_measured_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path))
    taken = []

    def products(x, w):
        taken.append(x.dtype)
        clock[0] += {torch.float32: 1.0, torch.bfloat16: 0.5, torch.int8: 30.0}[x.dtype]

    clock = [0.0]
    monkeypatch.setattr(number_format.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "mm", products)
    monkeypatch.setattr(torch, "_int_mm", products)
    form = NumberFormat(torch.float32, "int8", in_8_bits=True)
    assert number_format.slowdown(form) == 30
    assert taken.count(torch.int8) == 4  # two rounds, the first of which warms
    assert taken.count(torch.float32) == 10
    assert number_format.slowdown(form) == 30
    assert number_format.slowdown(NumberFormat(torch.bfloat16)) == 0.5
    assert number_format.slowdown(NumberFormat(torch.float32)) == 1.0
    assert fastest_dtype() == torch.bfloat16
    assert len(taken) == 4 + 10 + 10  # each once


def test_a_low_rank_layer_keeps_no_inputs_where_a_is_frozen():
    x, W = torch.randn(50, 8, requires_grad=True), torch.randn(6, 8)
    A, B = torch.randn(2, 8), torch.randn(6, 2, requires_grad=True)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        low_rank_linear(x, W, None, A, B, 2.0)
    assert x.shape not in kept
    assert torch.Size([50, 2]) in kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 0), (2, 3, 0, 4), (0, 3, 4, 4), (1, 1, 1, 0)])
def test_nothing_gives_nothing(way, dtype, shape):
    """Rows without a cell, and no rows: as torch has it, forward and backward."""
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    D = shape[-1]
    results = [
        softmax(x),
        softmax(x, torch.zeros(1, 1, 1, D, dtype=dtype), drop=0.5),
        rms_norm(x, torch.ones(D), 1e-6),
        gate_by("silu", x, x),
        dropout(x, 0.5),
    ]
    if D:
        results.append(layer_norm(x, torch.ones(D), torch.zeros(D), 1e-6))
    for y in results:
        assert y.shape == x.shape
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert grad.shape == x.shape


@pytest.mark.parametrize("around_one", [False, True])
def test_a_new_norm_divides_and_does_nothing_else(around_one):
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(16, 1e-6, around_one)
    assert torch.allclose(norm(x), x / x.square().mean(-1, keepdim=True).sqrt(), atol=1e-5)
