"""Buckets of relative positions at every distance where one begins, and the bias against a lookup cell by cell."""

from __future__ import annotations

import pytest
import torch

from microplane.nn.attention import MaskSpec
from microplane.nn.relative import RelativeBias, bucket_of
from microplane.nn.rows import Rows

# The first distance of each bucket that is shared by several, for 32 buckets and 128 as the farthest.
BOTH_WAYS = {8: 8, 9: 12, 10: 16, 11: 23, 12: 32, 13: 46, 14: 64, 15: 91}
BEHIND = {16: 16, 17: 19, 18: 21, 19: 24, 20: 27, 21: 31, 22: 35, 23: 40, 24: 46, 25: 52, 26: 59, 27: 67, 28: 77}
BEHIND |= {29: 87, 30: 99, 31: 113}


def buckets(distances, causal):
    return bucket_of(torch.tensor(distances), 32, 128, causal).tolist()


@pytest.mark.parametrize(("causal", "firsts"), [(False, BOTH_WAYS), (True, BEHIND)])
def test_every_bucket_begins_where_it_should(causal, firsts):
    exact = min(firsts)
    expected = [d if d < exact else max(b for b, first in firsts.items() if first <= d) for d in range(2000)]
    assert buckets([-d for d in range(2000)], causal) == expected
    ahead = [0] * 2000 if causal else [0] + [b + 16 for b in expected[1:]]
    assert buckets(list(range(2000)), causal) == ahead


def test_the_farthest_distance_has_the_last_bucket():
    assert buckets([-(10**6), 10**6], causal=False) == [15, 31]
    assert buckets([-(10**6), 10**6], causal=True) == [31, 0]


@pytest.mark.parametrize("starts", [None, (5, 5), (3, 0), (40, 7)])
@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_is_a_lookup_of_each_cell(causal, starts):
    rows = Rows.of([[1] * 6, [1] * 4], starts)
    bias = RelativeBias(8, 20, 3, causal).double()
    torch.nn.init.normal_(bias.weight)
    mask_spec = MaskSpec(rows, starts, causal=causal)
    made = bias(mask_spec)
    made = made if made.ndim == 4 else made.expand(2, -1, -1, -1)
    for b, start in enumerate(starts or (0, 0)):
        for i in range(rows.lengths[b]):
            for j in range(mask_spec.key_lengths[b]):
                bucket = bucket_of(torch.tensor(j - start - i), 8, 20, causal)
                assert torch.equal(made[b, :, i, j], bias.weight[bucket]), (b, i, j)


@pytest.mark.parametrize("lengths", [(1,), (2,), (9, 3)])
def test_the_gradient_of_the_bias_is_that_of_a_lookup(lengths):
    rows = Rows.of([[1] * n for n in lengths])
    bias = RelativeBias(8, 20, 3, causal=False).double()
    torch.nn.init.normal_(bias.weight)
    made = bias(MaskSpec(rows, causal=False))
    weights = torch.randn_like(made)
    (grad,) = torch.autograd.grad((made * weights).sum(), bias.weight)
    place = torch.arange(max(lengths))
    cells = bias.weight[bucket_of(place[None] - place[:, None], 8, 20, False)].permute(2, 0, 1)
    assert torch.equal(cells, made)
    (expected,) = torch.autograd.grad((cells * weights).sum(), bias.weight)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_by_distance_is_what_the_last_query_has(causal):
    bias = RelativeBias(8, 20, 3, causal)
    torch.nn.init.normal_(bias.weight)
    last = bias(MaskSpec(Rows.of([[1] * 30]), causal=causal)).reshape(3, 30, 30)[:, -1]
    assert torch.equal(bias.of_distances(30), last.flip(-1))
