import pytest
import torch
from torch.nn.functional import cross_entropy

from microplane.config.knobs import EvalKnobs
from microplane.evaluation import evaluate
from microplane.evaluation.evaluate import (
    answer_limit,
    choose_rows,
    describe_scores,
    evaluate_answers,
    evaluate_loss,
    measure,
    validation_loss,
    without_frame,
)
from microplane.evaluation.few_shot import MOST_TOKENS, room_of
from microplane.inference.generate import Answer
from microplane.inference.limits import check_limits
from microplane.nn.rows import Rows
from microplane.objectives.next_token import NextToken
from tests.tiny import MemoryDataset, copy_task, tiny, tiny_pairs


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


def test_rows_that_would_fit_into_one_batch_are_measured_in_several_groups():
    """Or nothing could be said of how much of a difference is chance."""
    found = validation_loss(NextToken(), tiny(), copy_task(40), 10**6)
    assert len(found.groups) >= 8
    assert sum(loss for loss, _ in found.groups) / sum(count for _, count in found.groups) == pytest.approx(found.mean)


def test_scores_in_words():
    assert describe_scores({"loss": 0.5, "exact_match": 0.847}) == "loss 0.500, exact_match 84.7%"
    parts = describe_scores({"perplexity": 1.5, "bleu": 31.25, "chrf": 48.5, "rmse": 2.0, "pearson": 0.5})
    assert parts == "perplexity 1.500, bleu 31.250, chrf 48.500, rmse 2.000, pearson 0.500"
    assert describe_scores({"edits": 12.4, "macro_f1": 0.5}) == "edits 12.400, macro_f1 50.0%"  # one of a package


def test_an_answer_may_be_twice_the_longest_right_one():
    assert answer_limit([[1] * 3, [1] * 20], EvalKnobs()) == 40
    assert answer_limit([[1] * 3], EvalKnobs()) == 16
    assert answer_limit([[1] * 20], EvalKnobs(max_new_tokens=7)) == 7


class Spelled:
    """A tokenizer that writes a token as its number, behind a mark of its own."""

    def __init__(self, mark="", target=None):
        self.mark, self.for_targets = mark, target or self

    def decode(self, ids, skip_special=True):
        return " ".join(f"{self.mark}{token}" for token in ids)


class Generated:
    """Takes the place of generation, and keeps what it was asked with."""

    def __call__(self, model, tokenizer, prompts, knobs, stop_ids, progress=None, fits=None):
        assert not model.training
        self.limits = check_limits(knobs, prompts, model, given=not fits)
        return [Answer([7], tokenizer.decode([7]), True) for _ in prompts]


def test_answers_end_where_the_context_does_and_are_spelled_as_what_is_written(monkeypatch):
    monkeypatch.setattr(evaluate, "generate", asked := Generated())
    target = Spelled("t")
    rows = MemoryDataset([([1] * 120 + [5], [False] * 120 + [True]), ([1, 2, 7], [False, False, True])])
    rows.prompt_and_target = lambda row: [part.tolist() for part in rows.pair(row)]
    model = tiny().train()  # whose context is 128
    found = evaluate_answers(model, Spelled("s", target), rows, [0, 1], EvalKnobs(metrics=("exact_match",)), [2])
    assert asked.limits == [8, 16], "a long prompt takes nothing of the others' answers"
    assert model.training, "as it was before"
    assert (found.prompts[1], found.targets, found.texts) == ("s1 s2", ["t5", "t7"], ["t7", "t7"])
    assert found.scores == {"exact_match": 0.5}


@pytest.mark.parametrize("knobs", [{}, {"max_new_tokens": 500}])
def test_answers_of_an_encoder_decoder_end_where_its_own_context_does(monkeypatch, knobs, recwarn):
    monkeypatch.setattr(evaluate, "generate", asked := Generated())
    rows = MemoryDataset([([1], [True])])
    rows.prompt_and_target = lambda row: ([1] * 90, [5] * 100)
    evaluate_answers(tiny_pairs("marian"), Spelled(), rows, [0], EvalKnobs(metrics=("exact_match",), **knobs), [2])
    assert asked.limits == [128]
    assert [str(one.message) for one in recwarn] == (
        ["the prompt leaves less room for an answer than max_new_tokens = 500: 128 tokens"] if knobs else []
    )


def test_the_frame_of_a_run_has_its_system_prompt_in_it(monkeypatch):
    """It is left out of the prompts that are shown, as what the template writes is."""

    class Objective:
        def stop_ids(self, tokenizer, template):
            return ()

        def prompt(self, messages, tokenizer, template, system):
            return [*system.encode(), *b" user: ", *messages[-1].content.encode(), *b" answer: "]

        def measure(self, model, dataset, rows, judge):
            return judge.frame()

    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode()

    frame = measure(Objective(), None, Bytes(), None, [], EvalKnobs(), "chat", "model", lambda what: None, "Be brief.")
    assert frame == ("Be brief. user: ", " answer: ")


def test_examples_leave_room_for_the_answer():
    rows = MemoryDataset([([1, 2], [False, True])])
    rows.prompt_and_target = lambda row: ([1], [5] * 30)
    assert room_of(tiny(), rows, [0], EvalKnobs()) == 128 - 60
    assert room_of(tiny_pairs(), rows, [0], EvalKnobs()) == MOST_TOKENS
