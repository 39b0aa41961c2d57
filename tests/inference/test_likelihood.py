"""Log-likelihoods of continuations, beside the plain sum over one row at a time."""

from __future__ import annotations

import math

import pytest
import torch

from microplane.inference.likelihood import log_likelihoods
from microplane.nn.rows import Pairs, Rows
from tests.tiny import tiny, tiny_pairs

PAIRS = [([5, 6, 7], [8]), ([9], [3, 4, 5, 6]), ([2] * 20, [11, 12]), ([5, 6, 7], [9, 9])]


def plainly(model, context, continuation):
    """(log p, whether greedy) token by token."""
    total, greedy = 0.0, True
    for cut, token in enumerate(continuation):
        if model.KIND == "encoder-decoder":
            read = Pairs(Rows.of([context]), Rows.of([[model.config.decoder_start or 0, *continuation[:cut]]]))
        else:
            read = Rows.of([[*context, *continuation[:cut]]])
        log_probs = torch.log_softmax(model.logits(model(read)[-1:])[0], dim=-1)
        total += float(log_probs[token])
        greedy = greedy and int(log_probs.argmax()) == token
    return total, greedy


@pytest.mark.parametrize("model", [tiny(), tiny_pairs(), tiny_pairs("marian")], ids=["decoder", "t5", "marian"])
def test_they_are_those_of_each_alone(model, monkeypatch):
    monkeypatch.setattr("microplane.inference.likelihood.SCORED", 2)
    likeliest = PAIRS[0][0], [next(token for token in range(97) if plainly(model, PAIRS[0][0], [token])[1])]
    second = PAIRS[0][0], [sorted(range(97), key=lambda token: plainly(model, PAIRS[0][0], [token])[0])[-2]]
    pairs, seen = [*PAIRS, second, likeliest], []
    found = log_likelihoods(model, pairs, lambda done, of: seen.append((done, of)))
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        wanted, wanted_greedy = plainly(model, context, continuation)
        assert math.isclose(score, wanted, rel_tol=1e-5)
        assert greedy == wanted_greedy
    assert [greedy for _, greedy in found[-2:]] == [False, True]
    assert seen[-1] == (6, 6)
