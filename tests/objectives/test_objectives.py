"""What every objective keeps: sums and counts fit each other, modes come back, and one that is not ours trains too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from microplane.config.knobs import EvalKnobs, TrainKnobs
from microplane.data.tokenizers.tokenizer import Encoded
from microplane.errors import ConfigError
from microplane.evaluation.evaluate import evaluate_loss, measure
from microplane.evaluation.probe import probe_logits, probe_rows
from microplane.methods import make_method
from microplane.models.configs.head import IGNORED
from microplane.models.heads import add_head, task_scores
from microplane.nn.rows import Rows
from microplane.objectives import HEAD_OBJECTIVES
from microplane.objectives.collate import for_each_batch, rows_of
from microplane.objectives.head import windows_of
from microplane.objectives.next_token import NextToken
from microplane.objectives.text import TokenBatch, perplexity
from microplane.training.loop import fit
from tests.contract.families import FAMILIES, Parity
from tests.tiny import copy_task, tiny, tiny_encoder

EVERY = pytest.mark.parametrize("family", list(FAMILIES))


@EVERY
def test_the_loss_of_a_batch_is_the_sum_of_its_rows(family):
    family = FAMILIES[family]
    objective, model = family.objective, family.build()
    whole = objective.collate(family.data, range(6))
    alone = [objective.collate(family.data, [row]) for row in range(6)]
    assert whole.count == sum(batch.count for batch in alone) == family.data.trained_counts[:6].sum()
    total = sum(objective.loss(model, batch) for batch in alone)
    torch.testing.assert_close(objective.loss(model, whole), total, rtol=1e-4, atol=1e-4)


MEANS = {  # what transformers' classes divide by the number of rows, or of tokens with a label
    "classification": lambda scores, labels: F.cross_entropy(scores, labels),
    "tokens": lambda scores, labels: F.cross_entropy(scores, labels),
    "multilabel": F.binary_cross_entropy_with_logits,
    "regression": F.mse_loss,
}


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("task", MEANS)
def test_the_loss_of_a_head_is_transformers_mean_times_its_count(task, rows):
    draw = torch.Generator().manual_seed(0)
    scores, several = torch.randn(rows, 3, generator=draw), torch.randn(rows, 3, generator=draw)
    labels = {"multilabel": (several > 0).float(), "regression": several}.get(task, torch.arange(rows) % 3)
    objective = HEAD_OBJECTIVES[task]
    whole = objective.loss_of_scores(scores, labels)
    torch.testing.assert_close(whole, MEANS[task](scores, labels) * rows)
    alone = sum(objective.loss_of_scores(scores[row : row + 1], labels[row : row + 1]) for row in range(rows))
    torch.testing.assert_close(whole, alone)


class Tags(Parity):
    """Rows of which each token has a class, or none: a different number of them in each row."""

    def labels(self, index):
        ids = self.rows[index][0]
        return np.where(np.arange(len(ids)) > index % 3, np.array(ids) % 2, IGNORED).astype(np.float32)


@pytest.mark.parametrize("task", ["classification", "tokens"])
def test_what_is_measured_of_a_head_is_the_mean_over_its_labels(task):
    model, objective = tiny_encoder(), HEAD_OBJECTIVES[task]
    add_head(model, task, ["even", "odd"])
    model.requires_grad_(False).eval()
    data = (Tags if task == "tokens" else Parity)(copy_task().rows)
    labels = np.concatenate([data.labels(row) for row in range(len(data))])
    data.trained_counts = np.array([(data.labels(row) != IGNORED).sum() for row in range(len(data))], np.int32)
    with torch.no_grad():
        scores = torch.cat([task_scores(model, Rows.of([data[row][0].tolist()])) for row in range(len(data))])
    wanted = F.cross_entropy(scores, torch.from_numpy(labels).long(), ignore_index=IGNORED).item()
    none = lambda what: lambda done, total: None  # noqa: E731
    found = measure(objective, model, None, data, [], EvalKnobs(), "plain", "model", none)["scores"]["loss"]
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found == evaluate_loss(objective, model, data, EvalKnobs().batch_tokens)


def test_an_answer_ends_at_the_templates_end_and_at_the_models():
    class Rendered(NextToken):
        def renderer(self, *how):
            return SimpleNamespace(end=7, stops=(1, 7, 2))

    assert Rendered().stop_ids(None, "chat") == (7, 1, 2)


def test_what_is_said_of_tokens_belongs_to_their_rows():
    assert HEAD_OBJECTIVES["tokens"].by_row([*"abcdef"], (1, 2, 3)) == [["a"], ["b", "c"], ["d", "e", "f"]]


@EVERY
def test_every_row_is_visited_once_without_dropout_and_gradients(family):
    family = FAMILIES[family]
    model, seen, progress = family.build().train(), [], []

    def visit(indices, batch):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.extend(indices)

    for_each_batch(family.objective, model, family.data, 30, visit, lambda done, total: progress.append((done, total)))
    assert sorted(seen) == list(range(len(family.data)))
    assert progress[-1] == (len(seen), len(seen))
    assert model.training
    assert torch.is_grad_enabled()


def broken(*given):
    raise RuntimeError("broken")


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_as_it_was_when_measuring_fails(training, monkeypatch):
    model, data = tiny().train(training), copy_task(8)
    monkeypatch.setattr(NextToken, "loss", broken)
    with pytest.raises(RuntimeError, match="broken"):
        evaluate_loss(NextToken(), model, data, 64)
    assert model.training is training
    monkeypatch.setattr(NextToken, "probe", broken)
    with pytest.raises(RuntimeError, match="broken"):
        probe_logits(NextToken(), model, probe_rows(NextToken(), data))
    assert model.training is training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("task", HEAD_OBJECTIVES)
def test_what_has_a_head_writes_nothing(task):
    objective = HEAD_OBJECTIVES[task]
    assert objective.stop_ids(None, "auto") == ()
    with pytest.raises(ConfigError, match=f"a task head for {task}: it gives labels and writes no text"):
        objective.prompt([], None, "auto", None)


@dataclass(frozen=True)
class TwoTowers(NextToken):
    """A contrastive objective that is not ours: each row's halves find each other among the batch's (InfoNCE)."""

    def collate(self, dataset, indices):
        halves = [np.array_split(dataset[index][0], 2) for index in indices]
        rows = rows_of([half[side] for side in (0, 1) for half in halves])
        return TokenBatch(rows, rows.last, torch.arange(len(indices)))

    def loss(self, model, batch, label_smoothing=0.0) -> Tensor:
        assert isinstance(batch.rows, Rows)
        vectors = torch.nn.functional.normalize(model(batch.rows)[batch.positions].float(), dim=-1)
        left, right = vectors.chunk(2)
        return torch.nn.functional.cross_entropy(left @ right.t() / 0.1, batch.targets, reduction="sum")


def test_an_objective_that_is_not_ours_trains(tmp_path):
    torch.manual_seed(0)
    model, method, data = tiny(), make_method({"name": "lora"}), copy_task(32)
    method.attach(model)
    losses = []

    def validate(model):
        losses.append(evaluate_loss(TwoTowers(), model, data, 400))
        return losses[-1]

    knobs = TrainKnobs(steps=30, lr=1e-2, eval_every=30)
    fit(
        model, method, data, knobs, tmp_path,
        objective=TwoTowers(), validate=validate, save_best=lambda *_: None, identity={},
    )  # fmt: skip
    assert losses[-1] < 0.7 * losses[0]


def test_labels_stand_in_the_order_of_their_rows():
    data, rows = FAMILIES["bert"].data, [5, 0, 3, 4, 1, 7, 2]
    labels = FAMILIES["bert"].objective.collate(data, rows).labels.tolist()
    assert labels == [float(data.labels(row)[0]) for row in rows] != labels[::-1]


def test_windows_are_neighbours_from_one_place_in_one_file():
    class Placed:
        def __init__(self, *places):
            self.places, self.where = places, places.__getitem__

        def __len__(self):
            return len(self.places)

    assert windows_of(Placed("a:1", "b:1", "b:1", "b:2")) == [[0], [1, 2], [3]]
    assert windows_of(Placed("a:1", "b:1", "a:1")) is None


def test_segments_are_noted_where_one_row_has_a_second_text():
    ids = [np.array([5, 6, 7]), np.array([8])]
    rows = rows_of(ids, [np.array([False, True, True]), np.array([False])])
    assert rows.types.tolist() == [0, 1, 1, 0]
    assert rows_of(ids, [np.zeros(3, np.bool_), np.zeros(1, np.bool_)]).types is None


def test_the_perplexity_of_a_loss_is_a_number_as_long_as_there_is_one():
    assert [perplexity(loss) for loss in (0.0, 300.0, 701.0)] == [1.0, math.exp(300), math.inf]


def test_a_class_is_said_from_above_one_half_in_both_ways():
    objective, scores = HEAD_OBJECTIVES["multilabel"], torch.tensor([[0.0, 1e-3, -1e-3]])
    assert objective.words(scores, "abc") == [["b"]]
    assert objective.prediction(objective.probabilities(scores)[0], "abc").labels == ("b",)


def test_numbers_are_told_with_six_digits_and_large_ones_without_a_power_of_ten():
    assert (
        HEAD_OBJECTIVES["regression"].line([1.23456789, 1234567.5, -0.00123456789], [])
        == "1.23457, 1234568, -0.00123457"
    )


def test_the_first_token_that_reaches_into_a_word_speaks_for_it():
    """SentencePiece's tokens begin with the white space before a word."""
    scores = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [0.0, 0.0]])
    encoded = Encoded([1, 2, 3, 4], [(0, 2), (2, 6), (6, 9), (0, 0)], [0] * 4, False)
    (found,) = HEAD_OBJECTIVES["tokens"].predictions(scores, ["ab cde fg"], [encoded], ["x", "y"])
    assert [(word, one.label) for word, one in found.words] == [("ab", "x"), ("cde", "y"), ("fg", "x")]
