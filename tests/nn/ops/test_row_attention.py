"""Compiled attention, row by row, against the formula."""

from __future__ import annotations

import pytest
import torch

from microplane.forecast.held import Held
from microplane.nn.attention import MaskSpec, attend, attend_to
from microplane.nn.attention_reference import attend_reference
from microplane.nn.ops import native
from microplane.nn.ops.row_attention import row_attention, usable
from microplane.nn.rows import Rows, to_heads

pytestmark = pytest.mark.skipif(
    not native.has("has_attention"), reason="this processor multiplies no pairs of bfloat16"
)

LENGTHS = [(1,), (5, 3, 7), (16, 33, 64), (70, 2, 41, 128)]
OTHERS = [(4,), (9, 1, 2), (31, 16, 50), (3, 90, 17, 65)]


def tensors(queries, keys, heads, kv, width):
    made = [torch.randn(sum(queries), heads, width), *(torch.randn(sum(keys), kv, width) for _ in range(2))]
    return [x.bfloat16().requires_grad_() for x in made]


def wide(inputs):
    return [x.detach().double().requires_grad_() for x in inputs]


def assert_near(inputs, y, exact_inputs, expected):
    """Within what rounding to bfloat16 explains, as a share of the whole: single numbers may vanish in a sum."""
    weights = torch.randn(y.shape).bfloat16()
    results = [y, *torch.autograd.grad((y * weights).sum(), inputs)]
    exact = [expected, *torch.autograd.grad((expected * weights.double()).sum(), exact_inputs)]
    for got, wanted in zip(results, exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - wanted).norm() <= 0.012 * wanted.norm() + 1e-6


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("width", [16, 64, 80])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("causal", [True, False])
def test_within_rows(lengths, causal, width, heads, kv):
    rows = Rows.of([[1] * n for n in lengths])
    inputs = tensors(lengths, lengths, heads, kv, width)
    exact = wide(inputs)
    assert usable(*inputs)
    y = attend(*inputs, MaskSpec(rows, causal=causal), 0.2)
    assert type(y.grad_fn).__name__ == "_RowAttentionBackward"
    assert_near(inputs, y, exact, attend_reference(*exact, rows, 0.2, causal=causal))


@pytest.mark.parametrize("rectangle", [True, False])
@pytest.mark.parametrize(("lengths", "others"), list(zip(LENGTHS, OTHERS, strict=True)))
def test_to_other_rows(lengths, others, rectangle):
    rows, read = (Rows.of([[1] * n for n in each]) for each in (lengths, others))
    inputs = tensors(lengths, others, 4, 4, 32)
    exact = wide(inputs)
    expected = attend_reference(*exact, rows, 0.3, causal=False, keys=others)
    if rectangle:
        q, *rest = inputs
        y = attend_to(q, *(to_heads(x, read) for x in rest), MaskSpec(rows, causal=False, keys=others), 0.3)
    else:
        y = row_attention(*inputs, lengths, others, False, 0.3)
    assert_near(inputs, y, exact, expected)


def test_what_a_row_gets_does_not_depend_on_its_neighbours():
    inputs = [x.detach() for x in tensors((5, 40, 7), (5, 40, 7), 4, 2, 32)]
    together = row_attention(*inputs, (5, 40, 7), (5, 40, 7), True, 0.3)
    alone = row_attention(*(x[5:45] for x in inputs), (40,), (40,), True, 0.3)
    assert torch.equal(together[5:45], alone)


def test_shares_are_not_kept_for_the_backward_pass():
    inputs = tensors((40,), (40,), 4, 2, 32)
    made = Held(inputs)
    with made:
        y = row_attention(*inputs, (40,), (40,), True, 0.3)
    assert made.peak < y.nbytes + 100  # beside where rows begin
    assert all(map(torch.equal, y.grad_fn.saved_tensors, inputs))


def test_gradients_are_the_same_after_rows_of_other_lengths():
    """The memory of a thread holds what the last row left there."""
    inputs = tensors((33,), (33,), 2, 1, 16)

    def gradients():
        return torch.autograd.grad(row_attention(*inputs, (33,), (33,), True, 0.3).sum(), inputs)

    first = gradients()
    others = [(x.detach() * 1000).requires_grad_() for x in tensors((90, 7), (90, 7), 2, 1, 16)]
    row_attention(*others, (90, 7), (90, 7), False, 100.0).sum().backward()
    assert all(map(torch.equal, first, gradients()))


def test_large_scores_are_no_overflow():
    inputs = [(x.detach() * 100) for x in tensors((20,), (20,), 2, 2, 16)]
    assert row_attention(*inputs, (20,), (20,), False, 1.0).isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_bit(threads):
    lengths = (5, 40, 7, 33)
    inputs = tensors(lengths, lengths, 4, 2, 32)
    results = []
    before = torch.get_num_threads()
    for n in (1, threads):
        torch.set_num_threads(n)
        y = row_attention(*inputs, lengths, lengths, True, 0.3)
        results.append([y, *torch.autograd.grad(y.float().sum(), inputs)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
