"""F1, correlation and ROUGE, written out here, against the libraries that define them."""

import random
from functools import cache

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support, root_mean_squared_error
from sklearn.preprocessing import MultiLabelBinarizer

from microplane.evaluation import label_metrics, text_metrics
from microplane.evaluation.correlation import pearson, spearman
from microplane.evaluation.f1 import macro_f1, micro_f1
from microplane.evaluation.rouge import longest_common_subsequence, rouge_l, rouge_n
from microplane.evaluation.spans import are_span_tags, spans

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


def test_the_scores_of_numbers_are_scipys_and_scikit_learns():
    draw = np.random.default_rng(0)
    truths = draw.normal(size=(7, 2))
    said = np.exp(truths) + draw.normal(size=(7, 2))  # ranks and sizes go together differently
    scores = label_metrics.regression(said.tolist(), truths.tolist())
    flat = said.ravel(), truths.ravel()
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(flat[1], flat[0]), **close)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(*flat).statistic, **close)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(*flat).statistic, **close)


def test_of_several_classes_a_row_is_right_where_all_are_and_no_more():
    truths = [["a"], ["a", "b"], [], ["b", "a"]]
    said = [["a", "b"], ["a"], [], ["a", "b"]]
    assert label_metrics.multilabel(said, truths)["accuracy"] == 0.5


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


@pytest.mark.parametrize("seed", range(30))
def test_scores_by_class_and_the_confusion_matrix_are_scikit_learns(seed):
    draw, classes = random.Random(seed), list("abcde")
    truths, guesses = (draw.choices(classes[: draw.randint(1, 5)], k=40) for _ in range(2))
    found = label_metrics.by_class("classification", guesses, truths, classes)
    expected = precision_recall_fscore_support(truths, guesses, labels=classes, zero_division=0)
    for number, name in enumerate(classes):
        given = [found["classes"][name][one] for one in ("precision", "recall", "f1", "rows")]
        assert given == pytest.approx([column[number] for column in expected], **close)
    assert found["confusion"] == confusion_matrix(truths, guesses, labels=classes).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_scores_by_class_of_several_classes_are_scikit_learns(seed):
    draw, classes = random.Random(seed), list("abcd")
    truths, guesses = ([draw.sample(classes, draw.randint(0, 4)) for _ in range(30)] for _ in range(2))
    table = MultiLabelBinarizer(classes=classes)
    expected = precision_recall_fscore_support(table.fit_transform(truths), table.transform(guesses), zero_division=0)
    found = label_metrics.by_class("multilabel", guesses, truths, classes)
    assert set(found) == {"classes"}
    for number, name in enumerate(classes):
        given = [found["classes"][name][one] for one in ("precision", "recall", "f1", "rows")]
        assert given == pytest.approx([column[number] for column in expected], **close)


def test_more_classes_than_can_be_read_have_no_matrix_and_numbers_have_no_classes():
    many = [f"c{number}" for number in range(label_metrics.MATRIX + 1)]
    assert set(label_metrics.by_class("classification", many, many, many)) == {"classes"}
    most = many[:-1]
    assert len(label_metrics.by_class("classification", most, most, most)["confusion"]) == label_metrics.MATRIX
    assert label_metrics.by_class("regression", [[1.0]], [[2.0]], ["value"]) == {}


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-x I-x O", [("x", 0, 2)]),
        ("B-x B-x", [("x", 0, 1), ("x", 1, 2)]),
        ("I-x I-x", [("x", 0, 2)]),  # no beginning: it begins all the same
        ("B-x I-y I-y", [("x", 0, 1), ("y", 1, 3)]),
        ("O I-y O I-y", [("y", 1, 2), ("y", 3, 4)]),
        ("B-x I-x E-x I-x", [("x", 0, 3), ("x", 3, 4)]),
        ("S-x S-x U-y L-y", [("x", 0, 1), ("x", 1, 2), ("y", 2, 3), ("y", 3, 4)]),
        ("B-x L-x I-x", [("x", 0, 2), ("x", 2, 3)]),
        ("I-x U-x I-x", [("x", 0, 1), ("x", 1, 2), ("x", 2, 3)]),
        ("B-new-york I-new-york", [("new-york", 0, 2)]),
    ],
)
def test_entities_of_tags(tags, found):
    assert spans(tags.split()) == set(found)


@pytest.mark.parametrize(
    ("tags", "are"), [("O B-x I-x", True), ("B-x", True), ("O", False), ("O B x", False), ("0 1", False), ("", False)]
)
def test_which_tags_mark_entities(tags, are):
    assert are_span_tags(tags.split()) is are


def test_an_entity_counts_as_a_whole_and_words_without_a_label_are_no_part_of_it():
    truths = [["B-x", None, "I-x", "O", "B-y"], ["O", "B-x"]]
    said = [["B-x", "O", "I-x", "O", "B-y"], ["O", "O"]]
    scores = label_metrics.score("tokens", said, truths)
    assert list(scores) == ["entity_f1", "entity_precision", "entity_recall", "accuracy", "macro_f1"]
    assert (scores["entity_precision"], scores["entity_recall"]) == (1, pytest.approx(2 / 3))
    cut_short = [["B-x", "O", "O", "O", "B-y"], ["O", "B-x"]]
    assert label_metrics.score("tokens", cut_short, truths)["entity_f1"] == pytest.approx(2 / 3)
    by_class = label_metrics.by_class("tokens", cut_short, truths, ["B-x", "B-y", "I-x", "O"])
    assert by_class["entities"]["x"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "rows": 2}
    assert by_class["entities"]["y"]["f1"] == 1
    assert by_class["classes"]["I-x"]["rows"] == 1
    plain = label_metrics.score("tokens", [["N", "V"]], [["N", "N"]])
    assert list(plain) == ["accuracy", "macro_f1"]


def test_entities_are_told_apart_by_their_rows_and_by_what_is_said_of_them():
    truths, said = [["B-x"], ["O"], ["O"]], [["O"], ["B-x"], ["B-y"]]  # the same places, in other rows
    assert label_metrics.score("tokens", said, truths)["entity_f1"] == 0
    found = label_metrics.by_class("tokens", said, truths, ["B-x", "B-y", "O"])["entities"]
    assert {name: (one["precision"], one["rows"]) for name, one in found.items()} == {"x": (0, 1), "y": (0, 0)}
    nothing_there = label_metrics.score("tokens", said, [["O"]] * 3)
    assert nothing_there["entity_precision"] == 0
