import pytest
import torch
from torch.nn.functional import cross_entropy

from microplane.evaluation.evaluate import choose_rows, describe_scores, evaluate_loss, without_frame
from microplane.nn.rows import Rows
from microplane.objectives.next_token import NextToken
from tests.tiny import copy_task, tiny


def test_prompts_are_shown_without_what_all_share():
    assert without_frame([[1, 2, 7, 9], [1, 2, 8, 8, 9]]) == [[7], [8, 8]]
    assert without_frame([[1, 2, 3]]) == [[1, 2, 3]]
    assert without_frame([[1, 2], [1, 2]]) == [[1, 2], [1, 2]]
    assert without_frame([[1, 2], [1, 5, 2]]) == [[1, 2], [1, 5, 2]]


def test_rows_are_spread_evenly():
    data = copy_task(10)
    assert choose_rows(data, 3) == [0, 3, 7]
    assert choose_rows(data, 99) == list(range(10))
    assert choose_rows(data, 0) == []


@pytest.mark.parametrize("budget", [16, 64, 4096])
def test_the_loss_does_not_depend_on_what_is_computed_at_once(budget):
    assert evaluate_loss(NextToken(), tiny(), copy_task(20), budget) == pytest.approx(
        evaluate_loss(NextToken(), tiny(), copy_task(20), 1), rel=1e-6
    )


@pytest.mark.parametrize("budget", [16, 4096])
def test_the_loss_is_the_mean_of_the_target_tokens_alone(budget):
    """As torch computes it row by row, over all of them at once."""
    model, data = tiny(), copy_task(20)
    losses = []
    for row in range(len(data)):
        ids, targets = (torch.from_numpy(x) for x in data[row])
        with torch.no_grad():
            logits = model.logits(model(Rows.of([ids.tolist()])))
        losses += cross_entropy(logits[:-1], ids[1:].long(), reduction="none")[targets[1:]].tolist()
    assert evaluate_loss(NextToken(), model, data, budget) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_scores_in_words():
    assert describe_scores({"loss": 0.5, "exact_match": 0.847}) == "loss 0.500, exact_match 84.7%"
