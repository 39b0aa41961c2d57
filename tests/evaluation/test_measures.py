"""F1, correlation and ROUGE, written out here, against the libraries that define them."""

import random
from functools import cache

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from microplane.evaluation import label_metrics, text_metrics
from microplane.evaluation.correlation import pearson, spearman
from microplane.evaluation.f1 import macro_f1, micro_f1
from microplane.evaluation.rouge import longest_common_subsequence, rouge_l, rouge_n

close = {"rel": 0, "abs": 1e-12}


@pytest.mark.parametrize("seed", range(50))
def test_macro_f1_is_scikit_learns_also_with_guesses_that_are_no_class(seed):
    draw = random.Random(seed)
    truths = draw.choices("abcde"[: draw.randint(1, 5)], k=draw.randint(1, 60))
    guesses = draw.choices("abcdefg", k=len(truths))
    expected = f1_score(truths, guesses, labels=sorted(set(truths)), average="macro", zero_division=0)
    assert macro_f1(guesses, truths) == pytest.approx(expected, **close)
    assert label_metrics.classification(guesses, truths)["macro_f1"] == pytest.approx(expected, **close)


@pytest.mark.parametrize("seed", range(50))
def test_micro_f1_of_several_classes_is_scikit_learns(seed):
    draw = random.Random(seed)
    rows = draw.randint(1, 40)
    truths, guesses = ([draw.sample("abcd", draw.randint(0, 4)) for _ in range(rows)] for _ in range(2))
    table = MultiLabelBinarizer(classes=list("abcd"))
    expected = f1_score(table.fit_transform(truths), table.transform(guesses), average="micro", zero_division=1)
    assert micro_f1(guesses, truths) == pytest.approx(expected, **close)


def test_no_class_anywhere_is_all_right():
    assert label_metrics.multilabel([[], []], [[], []]) == {"accuracy": 1.0, "micro_f1": 1.0}


@pytest.mark.parametrize("levels", [2, 3, 5, 1000])  # few levels: nearly all values have equals
@pytest.mark.parametrize("seed", range(20))
def test_correlations_are_scipys(seed, levels):
    draw = np.random.default_rng(seed)
    x = draw.integers(0, levels, 40) * 0.1
    y = x * draw.choice([-1, 1]) + draw.integers(0, levels, 40) * 0.1
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, **close)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, **close)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e100])  # the mean of ten times 0.1 is not 0.1
def test_what_never_changes_goes_together_with_nothing(constant):
    same, other = [[constant]] * 10, [[float(n)] for n in range(10)]
    for said, truths in ((same, other), (other, same), (same, same)):
        scores = label_metrics.regression(said, truths)
        assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    assert label_metrics.regression([[1.0]], [[2.0]]) == {"rmse": 1.0, "pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_together_with_nothing(bad):
    said, truths = [[1.0], [2.0], [bad]], [[1.0], [2.0], [3.0]]
    scores = label_metrics.regression(said, truths)
    assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    assert not np.isfinite(scores["rmse"])


def test_rouge_is_the_librarys_on_generated_texts():
    draw = random.Random(0)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    for _ in range(500):
        vocabulary = [f"w{n}" for n in range(draw.choice([2, 5, 30]))]
        prediction, target = (" ".join(draw.choices(vocabulary, k=draw.randint(0, 40))) for _ in range(2))
        expected = {kind: value.fmeasure for kind, value in scorer.score(target, prediction).items()}
        assert text_metrics.rouge([prediction], [target]) == pytest.approx(expected, **close), (prediction, target)


def test_the_longest_common_subsequence_is_that_of_the_definition():
    draw = random.Random(1)
    for _ in range(200):
        a, b = (tuple(draw.choices("abc", k=draw.randint(0, 12))) for _ in range(2))

        @cache
        def length(a, b):
            if not a or not b:
                return 0
            if a[-1] == b[-1]:
                return 1 + length(a[:-1], b[:-1])
            return max(length(a[:-1], b), length(a, b[:-1]))

        assert longest_common_subsequence(a, b) == length(a, b)


def test_rouge_by_hand():
    prediction, target = "the the cat".split(), "the cat the dog".split()
    assert rouge_n(prediction, target, 1) == pytest.approx(2 * 1 * (3 / 4) / (1 + 3 / 4))
    assert rouge_n(prediction, target, 2) == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))  # the cat
    assert rouge_l(prediction, target) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert rouge_n(["a"], ["a"], 2) == 0.0  # one word makes no pair


def test_a_long_text_is_measured_at_once():
    words = [str(n % 997) for n in range(20_000)]
    assert rouge_l(words, words) == 1.0
