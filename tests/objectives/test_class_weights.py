"""What a class counts in the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from microplane.config.build import assemble
from microplane.errors import ConfigError
from microplane.models.configs.head import IGNORED
from microplane.objectives import HEAD_OBJECTIVES
from microplane.objectives.class_weights import balanced, with_class_weights
from microplane.objectives.classification import Classification
from microplane.objectives.multilabel import MultiLabel
from microplane.objectives.next_token import NextToken
from microplane.objectives.regression import Regression
from microplane.objectives.token_classification import TokenClassification

COUNTS = {"a": 6, "b": 3, "c": 1}
CLASSES = ("a", "b", "c", "never")


def weights(objective, wanted):
    return with_class_weights(objective, wanted, CLASSES, COUNTS, 8).class_weights


def test_balanced_weights_are_scikit_learns_and_their_mean_over_the_rows_is_one():
    labels = [name for name, count in COUNTS.items() for _ in range(count)]
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert balanced(CLASSES, COUNTS) == pytest.approx([*expected, 1.0])
    assert weights(Classification(), "balanced") == weights(TokenClassification(), "balanced")
    assert sum(COUNTS[name] * one for name, one in zip("abc", expected, strict=True)) == pytest.approx(10)


def test_of_several_classes_each_is_balanced_against_the_rows_without_it():
    assert weights(MultiLabel(), "balanced") == pytest.approx([2 / 6, 5 / 3, 7.0, 1.0])


def test_weights_by_name_and_one_for_the_others():
    assert weights(Classification(), {"b": 4.0}) == (1.0, 4.0, 1.0, 1.0)
    by_number = with_class_weights(Classification(), {"a": 4.0}, ("c", "b", "a"), COUNTS, 8)
    assert by_number.class_weights == (1.0, 1.0, 4.0)
    with pytest.raises(ConfigError, match=r"train\.class_weights: there is no class 'nver'\. Did you mean 'never'\?"):
        weights(Classification(), {"nver": 2.0})


def test_where_there_are_no_classes_or_no_weights_nothing_changes():
    for objective in (*HEAD_OBJECTIVES.values(), NextToken()):
        assert with_class_weights(objective, "none", CLASSES, COUNTS, 8) is objective
    for objective in (Regression(), NextToken()):
        assert with_class_weights(objective, "balanced", CLASSES, COUNTS, 8) is objective


def test_the_loss_of_each_row_is_multiplied_by_the_weight_of_its_class():
    torch.manual_seed(0)
    scores, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 1, IGNORED]).float()
    weighted = with_class_weights(TokenClassification(), {"a": 2.0, "c": 5.0}, "abc", {}, 0)
    each = F.cross_entropy(scores[:6], labels[:6].long(), reduction="none")
    expected = (each * torch.tensor([2.0, 1, 5, 2, 1, 1])).sum()
    torch.testing.assert_close(weighted.loss_of_scores(scores, labels), expected)


def test_of_several_classes_the_weight_is_of_the_rows_that_have_the_class():
    torch.manual_seed(0)
    scores, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    weighted = with_class_weights(MultiLabel(), {"b": 3.0}, "abc", {}, 0)
    each = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    factors = 1 + 2 * labels * torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(weighted.loss_of_scores(scores, labels), (each * factors).sum() / 3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("balanced", "balanced"),
        ("none", "none"),
        ("null", "none"),
        ("{spam: 2, 3: 0.5, true: 3}", {"spam": 2.0, "3": 0.5, "true": 3.0}),
    ],
)
def test_what_the_knob_takes(text, value):
    assert assemble(assignments=[f"train.class_weights={text}"]).train.class_weights == value


@pytest.mark.parametrize("text", ["spam", "{}", "{spam: 0}", "{spam: -1}", "{spam: x}", "{spam: .inf}", "2", "[1, 2]"])
def test_what_the_knob_refuses(text):
    wanted = r"must be none, balanced, or a number above 0 for each class, as in \{spam: 3\}"
    with pytest.raises(ConfigError, match=rf"train\.class_weights = .*: {wanted}"):
        assemble(assignments=[f"train.class_weights={text}"])


def test_labels_that_are_none_may_be_numbers_and_one_alone():
    assert assemble(assignments=["data.no_label=-1"]).data.no_label == ("-1",)
    assert assemble(assignments=["data.no_label=[-1, n/a]"]).data.no_label == ("-1", "n/a")
    assert assemble(assignments=["data.no_label=[]"]).data.no_label == ()
