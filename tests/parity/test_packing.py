"""Packing of pairs: side by side in one batch, they train as each would alone, and so in any order and company."""

from __future__ import annotations

import random

import pytest
import torch

from microplane.models.contract import Model
from microplane.nn.rows import Pairs, Rows
from microplane.objectives.text import TokenBatch, token_loss
from tests.cases import some
from tests.tiny import PAIR_CONFIGS, tiny_pairs

Pair = tuple[list[int], list[int]]
EVERY = some(PAIR_CONFIGS, [name for name in PAIR_CONFIGS if name not in ("bart", "mbart", "m2m_100", "pegasus")])
START = {name: fields.get("decoder_start_token_id", 2) for name, fields in PAIR_CONFIGS.items()}  # T5Gemma names none


def some_pairs(count: int = 64, seed: int = 0) -> list[Pair]:
    """Short and of unequal lengths; some sides are one token long."""
    chance = random.Random(seed)
    return [tuple([chance.randrange(2, 90) for _ in range(chance.randint(1, 12))] for _ in "st") for _ in range(count)]


def losses(model: Model, start: int, pairs: list[Pair], together: int) -> torch.Tensor:
    """The loss summed over all targets, `together` pairs to a batch, with its gradient added to the model's."""
    total = torch.zeros(())
    for first in range(0, len(pairs), together):
        sources, targets = zip(*pairs[first : first + together], strict=True)
        rows = Pairs(Rows.of(sources), Rows.of([[start, *target[:-1]] for target in targets]))
        labels = torch.tensor([token for target in targets for token in target])
        loss = token_loss(model, TokenBatch(rows, torch.arange(len(labels)), labels))
        loss.backward()
        total += loss.detach()
    return total


def trained_on(family: str, pairs: list[Pair], together: int) -> tuple[float, dict[str, torch.Tensor]]:
    model = tiny_pairs(family).requires_grad_(True)
    loss = losses(model, START[family], pairs, together)
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def check(found: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    assert largest > 0.1
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max().item() < 1e-5 * largest, name


@pytest.mark.parametrize("family", EVERY)
def test_64_pairs_packed_are_64_pairs_alone(family):
    pairs = some_pairs()
    check(trained_on(family, pairs, together=64), trained_on(family, pairs, together=1))


@pytest.mark.parametrize("family", EVERY)
def test_which_pairs_lie_together_changes_nothing(family):
    pairs = some_pairs()
    expected = trained_on(family, pairs, together=16)
    for seed in range(3):
        check(trained_on(family, random.Random(seed).sample(pairs, len(pairs)), together=16), expected)


@pytest.mark.parametrize("family", EVERY)
def test_no_pair_sees_another(family):
    """Another pair's tokens, changed, leave the hidden states of a pair as they were."""
    model, start = tiny_pairs(family), START[family]
    pairs = some_pairs(3)
    others = [pairs[0], ([5] * len(pairs[1][0]), [7] * len(pairs[1][1])), pairs[2]]
    hidden = []
    for batch in (pairs, others):
        rows = Pairs(Rows.of([source for source, _ in batch]), Rows.of([[start, *target] for _, target in batch]))
        hidden.append(model(rows).split(rows.target.lengths))
    assert torch.equal(hidden[0][0], hidden[1][0])
    assert torch.equal(hidden[0][2], hidden[1][2])
    assert not torch.equal(hidden[0][1], hidden[1][1])
