"""AdamW with 8-bit averages steps nearly as AdamW does, holds a quarter, and goes on from what was saved to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from microplane.training import adamw_8bit
from microplane.training.adamw_8bit import BLOCK, AdamW8bit, restored, rounded, shares


def test_256_shares_finer_near_zero():
    for signed in (True, False):
        table = shares(signed)
        assert len(table.unique()) == 256
        assert (float(table[0]), float(table[-1])) == ((table[0].item(), 1.0) if signed else (0.0, 1.0))
        assert 0.0 in table.tolist()
        above = table[table > 0]
        assert float(above[0]) < 1e-6
        assert (above.diff() / above[1:]).max() < 0.9
    assert float(shares(True)[0]) < -0.98


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_are_rounded_to_the_nearest_share_of_their_block(signed):
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 1000)
    numbers = numbers if signed else numbers.abs()
    codes, largest = rounded(numbers, signed)
    assert (codes.dtype, len(codes), len(largest)) == (torch.uint8, 1000, 4)
    back = restored(codes, largest, signed)
    table = shares(signed)
    for start in range(0, 1000, BLOCK):
        block = numbers[start : start + BLOCK]
        nearest = (block / block.abs().max())[:, None].sub(table).abs().min(1).values * block.abs().max()
        assert (back[start : start + BLOCK] - block).abs() == pytest.approx(nearest, rel=1e-3, abs=1e-6)
    assert restored(*rounded(torch.zeros(300), signed), signed).tolist() == [0.0] * 300


def trained(optimizer, weights, count):
    """Steps towards a known map, from the same rows; the last loss."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(64, 80, generator=torch.Generator().manual_seed(2))
    for _ in range(count):
        x = torch.randn(32, 80, generator=generator)
        loss = ((x @ weights[0].t() + weights[1]) - x @ target.t()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def new():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(64, 80) * 0.1), nn.Parameter(torch.zeros(64))]


def test_it_trains_as_adamw_does_and_holds_a_quarter():
    ours, theirs, knobs = new(), new(), {"lr": 1e-2, "weight_decay": 0.01}
    small, whole = AdamW8bit(ours, **knobs), torch.optim.AdamW(theirs, **knobs)
    first = trained(AdamW8bit(new(), **knobs), new(), 1)
    assert trained(small, ours, 200) == pytest.approx(trained(whole, theirs, 200), rel=0.05)
    assert trained(small, ours, 1) < 0.2 * first
    states = small.state[ours[0]], whole.state[theirs[0]]
    held = [sum(tensor.nbytes for tensor in state.values()) for state in states]
    assert held[0] < 0.26 * held[1]
    assert small.state[ours[1]]["exp_avg"].dtype == torch.float32  # few numbers are not rounded


def test_a_first_step_is_adamws():
    """While nothing was rounded yet."""
    ours, theirs = new(), new()
    trained(AdamW8bit(ours, lr=1e-2), ours, 1)
    trained(torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0), theirs, 1)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_it_goes_on_from_what_was_saved():
    weights = new()
    optimizer = AdamW8bit(weights, lr=1e-2)
    trained(optimizer, weights, 3)
    others = [nn.Parameter(weight.detach().clone()) for weight in weights]
    again = AdamW8bit(others, lr=1e-2)
    for weight, other in zip(weights, others, strict=True):
        again.state[other] = copy.deepcopy(optimizer.state[weight])
    assert trained(optimizer, weights, 2) == trained(again, others, 2)
    assert torch.equal(weights[0], others[0])


def test_a_tensor_in_parts_steps_as_a_whole_one(monkeypatch):
    weights = [nn.Parameter(torch.linspace(-1, 1, 5000)) for _ in range(2)]
    for weight, part in zip(weights, (1 << 20, 4 * BLOCK), strict=True):
        monkeypatch.setattr(adamw_8bit, "PART", part)
        optimizer, draw = AdamW8bit([weight], lr=0.01), torch.Generator().manual_seed(0)
        for _ in range(3):
            weight.grad = torch.randn(5000, generator=draw) * torch.logspace(-3, 3, 5000)  # other scales in each block
            optimizer.step()
    assert torch.equal(*weights)
