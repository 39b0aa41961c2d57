"""Predictors that need no model, against scikit-learn's and by hand; and who beats whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from microplane.evaluation import text_metrics, trivial
from microplane.evaluation.trivial import TfIdf, beaten_by, trivial_predictions
from microplane.objectives.classification import Classification
from microplane.objectives.multilabel import MultiLabel
from microplane.objectives.next_token import NextToken
from microplane.objectives.regression import Regression
from microplane.objectives.token_classification import TokenClassification

WORDS = "the film was good bad fine poor red green blue and not at all never again".split()
RANDOM = np.random.default_rng(0)


class Words:
    """A tokenizer with a token for each word."""

    def decode(self, ids):
        return " ".join(WORDS[token] for token in ids)

    @property
    def for_targets(self):
        return self


@dataclass
class Rows:
    """A data set in memory."""

    ids: list
    own: list = field(default_factory=list)
    targets: list = field(default_factory=list)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return np.array(self.ids[row]), None

    def where(self, row):
        return f"rows:{row}"

    def labels(self, row):
        return np.atleast_1d(np.array(self.own[row], np.float32))

    def prompt_and_target(self, row):
        return self.ids[row], self.targets[row]

    @property
    def lengths(self):
        return np.array([len(row) for row in self.ids])


def texts(count):
    return [RANDOM.integers(0, len(WORDS), RANDOM.integers(3, 12)).tolist() for _ in range(count)]


MANY = texts(260)


def labelled(count, label):
    ids = texts(count)
    return Rows(ids, [label(row) for row in ids])


def scores(objective, train, held_out, classes=()):
    found = trivial_predictions(objective, train, held_out, [], Words(), classes, [])
    return {name: one.scores for name, one in found.items()}


def dense(bags, terms):
    ends = [*bags.starts.tolist(), len(bags.terms)]
    found = np.zeros((len(bags.starts), terms))
    for row, (start, end) in enumerate(pairwise(ends)):
        found[row, bags.terms[start:end]] = bags.weights[start:end]
    return found


def test_the_bag_of_words_is_scikit_learns():
    written = [Words().decode(row) for row in texts(200)]
    bag = TfIdf.of(written)
    theirs = TfidfVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r"\w+")
    matrix = theirs.fit_transform(written).toarray()
    order = [theirs.vocabulary_[term] for term in bag.terms]
    np.testing.assert_allclose(dense(bag.rows(written), len(order)), matrix[:, order], atol=1e-6)
    assert dense(bag.rows(["nothing that is known"]), len(order)).sum() == 0


def test_the_logistic_regression_is_scikit_learns():
    rows = labelled(300, lambda row: row[0] % 3)
    written = [Words().decode(row) for row in rows.ids]
    bag = TfIdf.of(written)
    bags, labels = bag.rows(written), torch.tensor(rows.own, dtype=torch.float32)
    start = trivial._Linear.zeros(len(bag.terms), 3)
    ours = trivial._fit(Classification(), bags, labels, start, 1e-2).scores(bags).softmax(1)
    theirs = LogisticRegression(C=1 / (1e-2 * 300), max_iter=1000).fit(dense(bags, len(bag.terms)), rows.own)
    np.testing.assert_allclose(ours, theirs.predict_proba(dense(bags, len(bag.terms))), atol=5e-3)


def test_the_ridge_is_scikit_learns():
    rows = labelled(300, lambda row: float(len(row)))
    written = [Words().decode(row) for row in rows.ids]
    bag = TfIdf.of(written)
    bags, labels = bag.rows(written), torch.tensor(rows.own)[:, None]
    ours = trivial._fit(Regression(), bags, labels, trivial._Linear.zeros(len(bag.terms), 1), 1e-2).scores(bags)
    theirs = Ridge(alpha=1e-2 * 300 / 2).fit(dense(bags, len(bag.terms)), rows.own)  # their loss has no half
    np.testing.assert_allclose(ours[:, 0], theirs.predict(dense(bags, len(bag.terms))), atol=2e-2)


def test_the_penalty_is_the_best_of_the_last_fifth():
    """Of labels that are chance the largest, of words that decide the smallest."""
    written = [Words().decode(row) for row in MANY]
    bags = (bag := TfIdf.of(written)).rows(written)
    for labels, best in ((torch.randint(0, 2, (len(MANY),)), 1e-3), (torch.tensor([7 in row for row in MANY]), 1e-5)):
        found = trivial._penalised(Classification(), bags, labels.float(), (len(bag.terms), 2))
        wanted = trivial._fit(Classification(), bags, labels.float(), trivial._Linear.zeros(len(bag.terms), 2), best)
        torch.testing.assert_close(found.weight, wanted.weight)


def test_classes():
    good = WORDS.index("good")
    train, held_out = (labelled(count, lambda row: int(good in row)) for count in (400, 100))
    found = scores(Classification(), train, held_out, ("no", "yes"))
    common = max(set(held_out.own), key=train.own.count)
    assert found["majority"]["accuracy"] == held_out.own.count(common) / 100
    assert found["TF-IDF + logistic regression"]["accuracy"] > 0.9


def test_several_classes_and_numbers():
    def both(row):
        return [float(WORDS.index("red") in row), float(WORDS.index("blue") in row)]

    found = scores(MultiLabel(), labelled(400, both), labelled(100, both), ("red", "blue"))
    assert found["TF-IDF + logistic regression"]["micro_f1"] > 0.7
    assert found["majority"]["micro_f1"] == 0  # most rows have neither
    large = [labelled(count, lambda row: 1e6 * (WORDS.index("red") in row)) for count in (400, 100)]
    found = scores(Regression(), *large)
    assert found["TF-IDF + ridge"]["pearson"] > 0.8
    assert found["mean"]["rmse"] == pytest.approx(np.std(large[1].own), rel=0.02)


def test_tokens_take_their_own_commonest_label():
    train, held_out = (labelled(count, lambda row: [token % 3 for token in row]) for count in (50, 10))
    train.own[0][0] = -100  # has no label
    found = scores(TokenClassification(), train, held_out, ("a", "b", "c"))
    assert found["each token's commonest label"]["accuracy"] == 1
    assert 0.2 < found["majority"]["accuracy"] < 0.5


def test_a_token_that_was_never_seen_has_the_commonest_label_of_all():
    train, held_out = Rows([[1, 2, 3]] * 4, [[0, 1, 1]] * 4), Rows([[1, 9]], [[0, 1]])
    found = scores(TokenClassification(), train, held_out, ("a", "b"))
    assert found["each token's commonest label"]["accuracy"] == 1


def test_answers_of_the_nearest_row_and_the_commonest_one():
    ids = texts(60)
    train = Rows(ids, targets=[[row[0]] for row in ids])
    held_out = Rows([[*row, 0] for row in ids[:20]], targets=[[row[0]] for row in ids[:20]])
    found = trivial_predictions(NextToken(), train, held_out, range(20), Words(), (), ["exact_match"])
    nearest, commonest = found["nearest training row"], found["commonest answer"]
    assert nearest.scores["exact_match"] > 0.8
    assert commonest.scores["exact_match"] < 0.5
    targets = [Words().decode(held_out.prompt_and_target(row)[1]) for row in range(20)]
    right = [said == target for said, target in zip(nearest.texts, targets, strict=True)]
    assert sum(right) / 20 == nearest.scores["exact_match"]
    assert len(set(commonest.texts)) == 1


def test_what_is_said_of_some_rows_is_told_in_their_order():
    good = WORDS.index("good")
    train, held_out = (labelled(count, lambda row: int(good in row)) for count in (400, 100))
    rows = [7, 3, 90]
    found = trivial_predictions(Classification(), train, held_out, rows, Words(), ("no", "yes"), [])
    alone = trivial_predictions(Classification(), train, held_out, range(100), Words(), ("no", "yes"), [])
    for name, one in found.items():
        assert one.texts == [alone[name].texts[row] for row in rows], name
        right = [said == ("no", "yes")[own] for said, own in zip(alone[name].texts, held_out.own, strict=True)]
        assert one.scores["accuracy"] == sum(right) / 100, name


def test_of_many_rows_some_are_read_that_are_spread_over_all(monkeypatch):
    monkeypatch.setattr(trivial, "MOST_TOKENS", 40)
    sorted_rows = Rows([[0, 1, 2, 3]] * 40, [0] * 20 + [1] * 20)  # as files often are
    assert trivial._seen(sorted_rows) == [4 * row for row in range(10)]


def test_the_unit_of_numbers_does_not_matter():
    """The search ends where gradients are small, as all are of small numbers."""
    found = []
    for unit in (1, 1e-6):
        train, held_out = (Rows(ids, [unit * (len(row) + row[0]) for row in ids]) for ids in (MANY[:200], MANY[200:]))
        found.append({name: one["rmse"] / unit for name, one in scores(Regression(), train, held_out).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-2)
    assert found[0]["TF-IDF + ridge"] < found[0]["mean"]


def test_plain_text_has_no_trivial_predictor():
    rows = Rows(texts(10), targets=[[]] * 10)
    assert trivial_predictions(NextToken(), rows, rows, range(5), Words(), (), ["auto"]) == {}


def test_rows_without_a_common_word_leave_the_constant_alone():
    rows = Rows([[0], [1], [2]], [0, 1, 1])
    assert list(scores(Classification(), rows, rows, ("a", "b"))) == ["majority"]


def test_who_is_beaten():
    one = {"majority": {"accuracy": 0.5}, "TF-IDF": {"accuracy": 0.8}}
    assert beaten_by({"loss": 1.0, "accuracy": 0.7}, one) == ("TF-IDF", "accuracy", 0.8)
    assert beaten_by({"accuracy": 0.8}, one) is None
    assert beaten_by({"rmse": 2.0}, {"mean": {"rmse": 1.0}}) == ("mean", "rmse", 1.0)
    assert beaten_by({"rmse": 0.5}, {"mean": {"rmse": 1.0}}) is None
    assert beaten_by({"loss": 1.0}, {}) is None


@pytest.mark.parametrize("lower", [True, False])
def test_of_a_metric_that_a_package_adds_it_says_which_way_is_better(monkeypatch, lower):
    def edits(predictions, targets):
        return {"edits": 0.0}

    edits.lower_is_better = lower
    monkeypatch.setattr(text_metrics, "METRICS", {**text_metrics.METRICS, "edits": edits})
    few, many = {"edits": 2.0, "edits_longest": 9.0}, {"edits": 5.0, "edits_longest": 9.0}
    beaten, better = (few, many) if lower else (many, few)
    assert beaten_by(better, {"commonest answer": beaten}) == ("commonest answer", "edits", beaten["edits"])
    assert beaten_by(beaten, {"commonest answer": better}) is None
