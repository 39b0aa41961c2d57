"""Attention in both directions, to other rows, with biases and prefixes, against the formula written row by row."""

from __future__ import annotations

import pytest
import torch

from microplane.nn.attention import MaskSpec, attend, attend_to
from microplane.nn.attention_reference import attend_reference
from microplane.nn.rows import Rows, to_heads

ROWS, OTHERS = (Rows.of([[1] * n for n in lengths]) for lengths in ((5, 3, 7), (4, 9, 2)))


def qkv(tokens=15):
    return [torch.randn(tokens, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize("causal", [True, False])
def test_within_rows(causal, window, bias):
    tensors = qkv()
    added = torch.randn(4, 7, 7, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [*tensors, *([added] if bias else [])]
    seen = attend(*tensors, MaskSpec(ROWS, window=window, causal=causal), 0.3, bias=added)
    expected = attend_reference(*tensors, ROWS, 0.3, window, causal=causal, bias=added)
    torch.testing.assert_close(seen, expected)
    weights = torch.randn_like(seen)
    for got, wanted in zip(
        torch.autograd.grad((seen * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_to_other_rows():
    q, k, v = qkv()
    mask_spec = MaskSpec(ROWS, causal=False, keys=OTHERS.lengths)
    keys, values = (to_heads(x, OTHERS) for x in (k, v))
    expected = attend_reference(q, k, v, ROWS, 0.3, causal=False, keys=OTHERS.lengths)
    torch.testing.assert_close(attend_to(q, keys, values, mask_spec, 0.3), expected)


def test_rows_of_one_length_need_no_mask():
    rows = Rows.of([[1] * 5] * 3)
    mask_spec = MaskSpec(rows, causal=False)
    assert mask_spec.needs_no_mask
    q, k, v = qkv()
    torch.testing.assert_close(attend(q, k, v, mask_spec, 0.3), attend_reference(q, k, v, rows, 0.3, causal=False))


@pytest.mark.parametrize("causal", [True, False])
def test_a_prefix_is_seen_by_every_row(causal):
    """As if each row had those keys and values before its own, which no query comes from."""
    q, k, v = qkv()
    own = [torch.randn(2, 3, 8, dtype=torch.float64) for _ in range(2)]
    seen = attend(q, k, v, MaskSpec(ROWS, causal=causal), 0.3, prefix=(own[0], own[1]))
    for start, n in zip((0, 5, 8), ROWS.lengths, strict=True):
        part = slice(start, start + n)
        key, value = (
            torch.cat([p.transpose(0, 1), x[part]]).repeat_interleave(2, 1) for p, x in zip(own, (k, v), strict=True)
        )
        scores = torch.einsum("ihd,jhd->hij", q[part], key) * 0.3
        if causal:
            scores = scores.masked_fill(torch.ones(n, n + 3).triu(4).bool(), float("-inf"))
        torch.testing.assert_close(seen[part], torch.einsum("hij,jhd->ihd", scores.softmax(-1), value))


@pytest.mark.parametrize("lengths", [(5, 3, 7), (5, 5, 5), (9,)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_many_scores_are_computed_in_parts(monkeypatch, causal, bias, lengths):
    """Some rows at a time, or one group of heads: the same numbers and gradients."""
    rows = Rows.of([[1] * n for n in lengths])
    q, k, v = qkv(sum(lengths))
    longest = max(lengths)
    added = torch.randn(4, longest, longest, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [q, k, v, *([added] if bias else [])]
    found = []
    for cells in (1 << 21, 4 * longest * longest * 2, 1):
        monkeypatch.setattr("microplane.nn.head_attention.CELLS", cells)
        seen = attend(q, k, v, MaskSpec(rows, causal=causal), 0.3, bias=added)
        found.append((seen, *torch.autograd.grad(seen.sin().sum(), inputs)))
    for other in found[1:]:
        for got, wanted in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, wanted)


def test_long_rows_take_the_other_way_and_agree():
    long = 259
    rows = Rows.of([[1] * long, [1] * 40])
    q, k, v = (torch.randn(long + 40, heads, 8) for heads in (4, 2, 2))
    for causal in (True, False):
        seen = attend(q, k, v, MaskSpec(rows, causal=causal), 0.3)
        torch.testing.assert_close(seen, attend_reference(q, k, v, rows, 0.3, causal=causal), rtol=1e-4, atol=1e-5)


def test_dropout_keeps_the_mean_and_drops_something():
    q, k, v = (x.detach() for x in qkv())
    plain = attend(q, k, v, MaskSpec(ROWS), 0.3)
    torch.manual_seed(0)
    dropped = torch.stack([attend(q, k, v, MaskSpec(ROWS), 0.3, dropout=0.3) for _ in range(2000)])
    assert not torch.equal(dropped[0], plain)
    torch.testing.assert_close(dropped.mean(0), plain, rtol=0.1, atol=0.1)
