import pytest

from microplane.evaluation.evaluate import choose_rows, describe_scores, evaluate_loss, without_frame
from microplane.objectives.next_token import NextToken
from tests.tiny import copy_task, tiny


def test_prompts_are_shown_whole_but_for_the_template():
    frame = ("user: ", " assistant:")
    assert without_frame("user: what is up assistant:", frame) == "what is up"
    assert without_frame("user:  assistant:", frame) == ""
    for other in ("system: be brief user: hi assistant:", "user: hi", "user: assistant:", ""):
        assert without_frame(other, frame) == other


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


def test_scores_in_words():
    assert describe_scores({"loss": 0.5, "exact_match": 0.847}) == "loss 0.500, exact_match 84.7%"
