"""Attention against its formula, in value and gradient; what lies past a row's end; long rows."""

from __future__ import annotations

import pytest
import torch

from microplane.nn import attention
from microplane.nn.attention import MaskSpec, attend
from microplane.nn.attention_reference import attend_reference
from microplane.nn.cache import Cache
from microplane.nn.rows import Rows

LENGTHS = {"unequal": (7, 1, 12, 4), "equal": (6, 6, 6), "one": (9,), "one token": (1,), "single tokens": (1, 1, 1)}


def example(lengths, heads=6, kv_heads=2, width=8, dtype=torch.float64):
    rows = Rows.of([[0] * n for n in lengths])
    T = sum(lengths)
    return rows, *(torch.randn(T, n, width, dtype=dtype, requires_grad=True) for n in (heads, kv_heads, kv_heads))


@pytest.mark.parametrize("long", [False, True], ids=["short path", "long path"])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 11, 64])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_attend_is_its_reference(lengths, window, softcap, long, monkeypatch):
    if long:
        monkeypatch.setattr(attention, "LONG", 0)
    rows, *qkv = example(lengths)
    seen = attend(*qkv, MaskSpec(rows, window=window), 0.3, softcap)
    expected = attend_reference(*qkv, rows, 0.3, window, softcap)
    torch.testing.assert_close(seen, expected)
    weights = torch.randn_like(seen)
    grads = [torch.autograd.grad((out * weights).sum(), qkv) for out in (seen, expected)]
    for mine, reference in zip(*grads, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1)])
def test_other_groupings(heads, kv_heads):
    rows, *qkv = example((5, 3), heads, kv_heads)
    torch.testing.assert_close(attend(*qkv, MaskSpec(rows), 0.3), attend_reference(*qkv, rows, 0.3))


def test_rows_and_the_future_do_not_influence_a_token():
    rows, q, k, v = example((7, 3, 5), dtype=torch.float32)
    out = attend(q, k, v, MaskSpec(rows), 0.3)
    grads = torch.autograd.grad(out[8].square().sum(), (q, k, v))  # the second token of the second row
    for grad in grads:
        touched = grad.flatten(1).abs().sum(1).nonzero().flatten().tolist()
        assert set(touched) <= {7, 8}
        assert grad.isfinite().all()


def test_softmax_of_bfloat16_is_computed_in_float32():
    """What `attend` relies on: torch rounds the shares, and nothing before them."""
    scores = torch.randn(50, 300).bfloat16() * 4
    assert torch.equal(scores.softmax(-1), scores.softmax(-1, dtype=torch.float32).bfloat16())


def test_bfloat16_is_close_to_float32():
    rows, *qkv = example((30, 7), dtype=torch.float32)
    narrow = [x.detach().bfloat16() for x in qkv]
    seen = attend(*narrow, MaskSpec(rows), 0.3)
    assert seen.dtype == torch.bfloat16
    torch.testing.assert_close(
        seen.float(), attend_reference(*(x.float() for x in narrow), rows, 0.3), rtol=2e-2, atol=2e-2
    )


@pytest.mark.parametrize("long", [False, True], ids=["short path", "long path"])
@pytest.mark.parametrize("window", [None, 3])
def test_what_lies_behind_a_row_in_the_cache_is_not_seen(window, long, monkeypatch):
    """Rows of unequal length in the cache, then unequal numbers of new tokens, the most to the shortest row."""
    if long:
        monkeypatch.setattr(attention, "LONG", 0)
    first, later = (9, 1), (1, 8)
    q, k, v = (torch.randn(19, n, 8) for n in (6, 2, 2))
    whole = Rows.of([[0] * 10, [0] * 9])
    expected = attend_reference(q, k, v, whole, 0.3, window)
    cache, done = Cache(1, 2, capacity=32), []
    for lengths, places in ((first, [*range(9), 10]), (later, [9, *range(11, 19)])):
        rows = Rows.of([[0] * n for n in lengths], starts=cache.lengths)
        queries = q[places].requires_grad_(True)
        out = attend(queries, k[places], v[places], MaskSpec(rows, cache.lengths, window), 0.3, cache=cache)
        assert torch.autograd.grad(out.sum(), queries)[0].isfinite().all()
        done.append((places, out.detach()))
        cache.advance(rows)
        cache.keys[0][0, :, 10:] = cache.values[0][0, :, 10:] = 1e4  # stale cells
        cache.keys[0][1, :, cache.lengths[1] :] = cache.values[0][1, :, cache.lengths[1] :] = -1e4
    for places, out in done:
        assert out.isfinite().all()
        torch.testing.assert_close(out, expected[places], rtol=1e-5, atol=1e-5)
