"""Metrics against their libraries and against figures worked out by hand."""

import subprocess
import sys

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from microplane.errors import ConfigError
from microplane.evaluation import text_metrics
from microplane.evaluation.text_metrics import METRICS, canonical_json, choose, lower_is_better, score, words

ENGLISH = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("It's 3 o'clock, well-known co_op.", "it's 4 o'clock; well known co_op"),
    ("", "nothing was said"),
    ("a dog", "a dog"),
]


def _pairs(pairs):
    return [p for p, _ in pairs], [t for _, t in pairs]


def test_exact_match_strips_the_ends_only():
    figures = score(["exact_match"], [" a b\n", "a  b", "A b", ""], ["a b", "a b", "a b", "a b"])
    assert figures == {"exact_match": 0.25}


def test_json_valid_and_equal():
    targets = ['{"a": 1, "b": [true, null]}'] * 6
    predictions = [
        '{"b": [true, null], "a": 1.0}',  # equal: keys in another order, 1.0 is 1
        '{"a": 1, "b": [1, null]}',  # valid, but 1 is not true
        '{"a": 1, "b": [null, true]}',  # valid, but lists have an order
        '{"a": 1, "b": [true, null]',
        '{"a": NaN}',
        "",
    ]
    assert score(["json_valid", "json_equal"], predictions, targets) == {"json_valid": 0.5, "json_equal": 1 / 6}


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{'a': 1}", "Infinity", "{} {}", "\ud800"])
def test_what_is_not_json_is_not_an_error(text):
    assert canonical_json(text) is None


def test_a_target_that_is_not_json_is_never_equal():
    assert score(["json_equal"], ["oops", "{}"], ["oops", "oops"]) == {"json_equal": 0.0}


def test_accuracy_and_macro_f1():
    targets = ["positive", "positive", "Negative", "neutral"]
    predictions = [" Positive\n", "I think it is good", "negative", "negative"]
    assert score(["accuracy"], ["not  so\tgood"], ["Not so good"]) == {"accuracy": 1.0}
    figures = score(["accuracy", "macro_f1"], predictions, targets)
    assert figures["accuracy"] == 0.5
    # positive: precision 1, recall 1/2; negative: precision 1/2, recall 1; neutral: 0
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_macro_f1_is_scikit_learns():
    targets, predictions = list("aabbccabca"), list("abbbcaabcc")
    assert score(["macro_f1"], predictions, targets)["macro_f1"] == f1_score(targets, predictions, average="macro")


def test_rouge_equals_the_library_on_ascii():
    predictions, targets = _pairs(ENGLISH)
    own = RougeScorer(["rouge1", "rouge2", "rougeL"])
    rows = [own.score(target, prediction) for prediction, target in ENGLISH]
    expected = {kind: sum(row[kind].fmeasure for row in rows) / len(rows) for kind in rows[0]}
    assert score(["rouge"], predictions, targets) == pytest.approx(expected)


def test_rouge_sees_every_script():
    for text in [
        "η γάτα κοιμάται",
        "кошка спит",
        "बिल्ली सो रही है",
        "猫が寝ている",
        "แมวนอนหลับ",
        "mèo đang ngủ",
        "고양이가 잔다",
    ]:
        assert score(["rouge"], [text], [text]) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}, text
    assert score(["rouge"], ["кот"], ["пёс"])["rouge1"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L'été, c'est_ça!", ["l", "été", "c", "est", "ça"]),
        ("e\u0301te\u0301", ["été"]),  # decomposed accents
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs stay with their letters
        ("GPT読む、2本", ["gpt", "読", "む", "2", "本"]),
        ("🙂 -- ", []),
        ("𰀀𰀁 𪛟𪜀", ["𰀀", "𰀁", "𪛟", "𪜀"]),  # the first and last of Han's extensions
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_bleu_and_chrf_are_sacrebleus():
    predictions, targets = _pairs(ENGLISH)
    figures = score(["bleu", "chrf"], predictions, targets)
    assert figures["bleu"] == sacrebleu.corpus_bleu(predictions, [targets]).score > 0
    assert figures["chrf"] == sacrebleu.corpus_chrf(predictions, [targets]).score > 0


def test_empty_predictions_score_zero_everywhere():
    targets = ['{"a": 1}', "a b c d e f"]
    figures = score(list(METRICS), ["", ""], targets)
    assert figures
    assert set(figures.values()) == {0.0}


def test_empty_targets_are_no_error():
    assert all(value >= 0 for value in score(list(METRICS), ["a", ""], ["", ""]).values())


def test_no_rows_no_figures():
    assert score(["rouge", "auto"], [], []) == {}


def test_of_losses_and_errors_less_is_better():
    assert lower_is_better(["rmse", "accuracy", "loss", "pearson", "perplexity"]) == ["rmse", "loss", "perplexity"]


def test_of_all_figures_of_a_metric_that_says_so_less_is_better(monkeypatch):
    def edits(predictions, targets):
        return {"edits": 0.0, "edits_longest": 0.0}

    edits.lower_is_better = True
    monkeypatch.setattr(text_metrics, "METRICS", {**METRICS, "edits": edits})
    assert lower_is_better(["edits", "edits_longest", "editsofall", "rouge1"]) == ["edits", "edits_longest"]


def test_unknown_metric():
    with pytest.raises(ConfigError) as error:
        score(["exact_match", "rougue"], [], [])
    assert str(error.value) == (
        "there is no metric 'rougue'. Did you mean 'rouge'? "
        "Metrics: auto, exact_match, json_valid, json_equal, accuracy, macro_f1, rouge, bleu, chrf"
    )


JSON = ("exact_match", "json_valid", "json_equal")
LABELS = ("accuracy", "macro_f1")
TEXT = ("exact_match", "rouge", "bleu", "chrf")
SHORT = ("exact_match", "rouge", "chrf")  # of BLEU these would be 0 even if all were right


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (['{"a": 1}', " [1, 2]\n"], JSON),
        (['{"a": 1}', '{"a": '], SHORT),
        (["1", "2", "1", "1"], LABELS),  # numbers are JSON, but neither objects nor arrays
        (["positive", "negative", "Positive "], LABELS),
        (["a", "b", "c", "d"], SHORT),  # nothing repeats
        (["out of stock right now", "in stock"] * 2, LABELS),  # five words
        (["out of stock for right now", "in stock"] * 2, TEXT),
        (["three words only", "a longer answer of six words"] * 2 + ["three again here"], SHORT),
        (["x" * 51, "y"] * 10, SHORT),
        (["one two three four five six", "no"] * 10, TEXT),
        ([str(n) for n in range(101)] * 10, SHORT),
        ([], TEXT),
    ],
)
def test_choose(targets, expected):
    assert choose(targets) == expected


def test_auto_is_what_choose_takes():
    assert list(score(["auto"], ["yes", "no", "no"], ["yes", "no", "yes"])) == ["accuracy", "macro_f1"]


def test_libraries_are_loaded_only_when_needed():
    program = (
        "import sys; from microplane.evaluation.text_metrics import score; "
        "score(['exact_match', 'json_equal'], ['{}'], ['{}']);"
        "print([name for name in ('sklearn', 'sacrebleu', 'rouge_score', 'nltk') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
