"""The rows by which two models are compared."""

from __future__ import annotations

import pytest
import torch

from microplane.evaluation.probe import difference_check, largest_difference, probe_logits, probe_rows
from microplane.objectives.next_token import NextToken
from tests.tiny import copy_task, tiny


def test_the_difference_is_the_largest_of_all_positions_and_rows():
    one = [torch.zeros(3, 4), torch.zeros(2, 4)]
    other = [torch.zeros(3, 4), torch.zeros(2, 4)]
    other[0][2, 1], other[1][0, 3] = 0.25, -2.0
    assert largest_difference(one, other) == largest_difference(other, one) == 2.0
    assert largest_difference(one, [tensor.bfloat16() for tensor in other]) == 2.0
    assert difference_check("same", one, other, tolerance=2.0).passed
    assert not difference_check("same", one, other, tolerance=1.99).passed


def test_two_models_are_compared_without_dropout_and_left_as_they_were():
    model, data = tiny(), copy_task()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, given: pytest.fail("it trains") if module.training else None)
    model.train()
    rows = probe_rows(NextToken(), data)
    assert len({tuple(row.ids) for row in rows}) == 4
    logits = probe_logits(NextToken(), model, rows)
    assert [one.shape[-1] for one in logits] == [model.config.vocab_size] * 4
    assert model.training
