"""Columns of labels: what they are taken for, what is read of a value, and what is refused."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from microplane.data.reading.bad_rows import NoLabel, RowError
from microplane.data.reading.label_values import LARGEST, label_names, look, means_none

NAN, INF = math.nan, math.inf


def read(values: list, task=None, **given) -> list:
    """What becomes of each value: its labels, "none", or the complaint."""
    column, found = look(values, task, **given), []
    for value in values:
        try:
            found.append(column.read(value, "y"))
        except NoLabel:
            found.append("none")
        except RowError as error:
            found.append(str(error))
    return found


def steps(step: float, count: int = 30) -> list[float]:
    return [round(step * number, 4) for number in range(count)]


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["good", "bad"] * 9, "classification"),
        ([0, 1, 2] * 9, "classification"),
        (["0", "1", "2"] * 9, "classification"),
        ([True, False] * 9, "classification"),
        ([0, 1, NAN] * 9, "classification"),  # a gap says nothing of what the column is
        (["1.0", "1.5", "2.0"] * 9, "classification"),
        ([0.5, 1.5] * 9, "regression"),
        ([0.0, 1.0] * 9, "classification"),  # whole numbers of a column in which some are missing
        ([0.0, 1.0, Decimal("2.00")] * 9, "classification"),
        (steps(17), "regression"),
        ([Decimal("0.5"), Decimal(2)] * 9, "regression"),  # as Parquet may have them
        ([1, 2, 2.5] * 9, "regression"),
        ([1, 2, 3, 4] * 9 + [2.5], "classification"),  # one odd value: a bad row
        (steps(0.35), "regression"),
        (list(map(str, steps(0.35))), "regression"),
        ([f" {value} " for value in steps(17)], "regression"),
        (list(map(int, steps(17))), "regression"),
        ([*map(str, steps(0.35)), "n/a", ""], "regression"),
        ([*map(str, steps(0.35)), *["n/a"] * 9], "regression"),  # a number as a class of its own tells nothing
        ([*map(str, steps(0.35)), *["NaN", "-inf", ""] * 9], "regression"),
        ([*map(str, steps(0.35)), *["n/a"] * 40], "classification"),
        ([*map(str, steps(0.35)), *["a", "b", "c", "d"] * 3], "classification"),
        ([*map(str, [1, 2, 3] * 10), *["n/a"] * 9], "classification"),
        (["3", "1", "4"], "classification"),  # too few to tell
        ([*range(8), 0, 1, 2, 3], "classification"),  # two in three are new ones
        ([*range(9), 0, 1, 2], "regression"),  # and more
        ([["a"], ["a", "b"], []] * 9, "multilabel"),
        (["['a']", '["a", "b"]', "[]"] * 9, "multilabel"),
        ([[0, 1], [1, 1]] * 9, "multilabel"),
        (["a", "b"] * 9 + [[]], "classification"),
    ],
)
def test_the_values_decide_what_is_learnt(values, task):
    assert look(values, None).task == task


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([[0, 1, 0], [1, 1, 0]], ("0", "1", "2")),
        ([[0.0, 1.0], [False, True]], ("0", "1")),
        (["[0, 0, 1]", "[1, 0, 0]"], ("0", "1", "2")),
        ([["0", "0"], ["1", "0"]], ("0", "1")),
        ([["0.0", "1.0"], ["1.0", "1"]], ("0", "1")),
        ([[Decimal(0), Decimal(1)]] * 2, ("0", "1")),
        (["(0, 1)", "(1, 1)"], ("0", "1")),
        ([[1, 0, -1], [0, 1, 1]], ("0", "1", "2")),  # -1: of this class nothing is known
        ([[1, 0, None], [0, -100, 1]], ("0", "1", "2")),
        ([[0, -1, -1], [-1, -1, -1]], ()),  # more open than said
        (["0 0 1", "1 1 0"], ("0", "1", "2")),
        (["0,1", "1, 0"], ("0", "1")),
        (["[0. 1. 1.]", "[1. 0. 0.]"], ("0", "1", "2")),
        ([[0, 1, 0], None], ("0", "1", "2")),
        ([[0, 1, 0]] * 9 + [[0, 1]], ("0", "1", "2")),  # one bad row does not make others
        (["[0, 1, 0]"] * 3 + ["?", "[]x"], ("0", "1", "2")),
        ([[0, 1], [1]], ()),
        ([[0, 2], [1, 1]], ()),
        ([[1], [0]], ()),
        ([["a", "b"], ["b", "a"]], ()),
        ([[], []], ()),
    ],
)
def test_multi_hot_rows_are_lists_of_one_length_of_noughts_and_ones(values, classes):
    assert look(values, None).classes == classes


def test_lists_in_text_are_read_as_they_were_written():
    lists = (
        '["a", "b c"]',
        "['a', 'b c']",
        "['a' 'b c']",
        "['a'\n 'b c']",
        ' ["a","b c"] ',
        "('a', 'b c')",
        "{'b c', 'a'}",
    )
    for text in lists:
        assert read([text, "['a']"]) == [("a", "b c"), ("a",)]
    assert read(["1 0 1", "0 0 0", "1.0 1.0 0.0"]) == [("0", "2"), (), ("0", "1")]
    assert read(["[draft", "0", "10"]) == [("[draft",), ("0",), ("10",)]


def test_lists_that_repeat_a_number_name_no_classes():
    assert "expected each label once; multi-hot rows are lists" in read([[0, 1, 7, 1]])[0]
    assert read([["red", "red"]]) == [("red",)]


def test_the_columns_of_multi_hot_rows_have_the_names_of_the_models_head():
    assert read([[0, 1], [1, 1]], known=("calm", "loud")) == [("loud",), ("calm", "loud")]
    assert look([[0, 1, 0]], None, known=("calm", "loud")).classes == ("0", "1", "2")
    assert read([["0", "1.0"], ["1", "0"]], known=("calm", "loud")) == [("loud",), ("calm",)]


def test_what_is_not_multi_hot_among_multi_hot_rows_is_refused():
    column = look([[0, 1, 1]], None)
    for value in (
        [0, 1],
        [0, 1, 2],
        [0, 1, None],
        [0, 1, -1],
        [1, 0, "-1.0"],
        [1, 0, -100],
        ["a", "b", "c"],
        [0, 1, 0.5],
    ):
        with pytest.raises(RowError, match="expected 3 numbers as in the first rows, each 0 or 1"):
            column.read(value, "y")


@pytest.mark.parametrize(
    ("names", "none"),
    [
        ("0 1 2 -1", {"-1", "-100"}),
        ("7 0 -1 -100", {"-1", "-100"}),
        ("0 1 -1", {"-100"}),  # negative, neutral, positive
        ("-1 1", {"-100"}),
        ("-1 1 2", {"-100"}),
        ("0 1 2 -1 -2", {"-100"}),
        ("a b -1", {"-100"}),
        ("0 1 2 x -1", {"-100"}),
        ("-1", {"-100"}),
        ("", {"-100"}),
    ],
)
def test_which_labels_mean_that_there_is_none(names, none):
    assert means_none(names.split()) == none


def test_rows_without_a_label_are_told_from_bad_ones():
    assert read([0, 1, 2, -1, -100]) == [("0",), ("1",), ("2",), "none", "none"]
    assert read(["0", "1", "-1", "2"])[2] == "none"
    assert read([-1, 0, 1, -100]) == [("-1",), ("0",), ("1",), "none"]
    assert read([-1, 0, 1], no_label=["-1"])[0] == "none"
    assert read([-1, 0, 1, 2], known=("-1", "0", "1", "2"))[0] == ("-1",)  # the model's head has it
    assert read(["?", "a", -100], no_label=["?"]) == ["none", ("a",), ("-100",)]
    assert read([[1, 0, -100], [2, 1, -1]], "tokens") == [("1", "0", None), ("2", "1", None)]
    assert "-1 means that there is none: leave it out" in read([[0, 2], [1, -1]], "multilabel")[1]


def test_a_number_that_means_that_there_is_none_is_not_learnt():
    assert read([0.5, 1.5, -100, "-100", "-100.0", Decimal(-100)], "regression") == [(0.5,), (1.5,), *["none"] * 4]
    assert read([-99.5, -100.0, 3.0], "regression") == [(-99.5,), (-100.0,), (3.0,)]  # one number among others
    assert read([-100.0], "regression") == [(-100.0,)]  # nothing says what it is
    assert read([0.5, -1.0, -100], "regression", no_label=["-1"]) == [(0.5,), "none", (-100.0,)]
    assert read(["0.5", "n/a"], "regression", no_label=["n/a"]) == [(0.5,), "none"]


@pytest.mark.parametrize(
    "form", ["1,0{:02}.5", "1 0{:02}", "1'0{:02}.5", "{},5", "{} %", "{}%", "$1,0{:02}", "{},25 €"]
)
def test_numbers_written_for_people_are_no_classes_and_not_guessed_at(form):
    values = [form.format(number) for number in range(1, 30)]
    assert look(values, None).task == "regression"
    assert all("expected a number as 1234.5 is, without units and marks" in found for found in read(values))
    few = values[:3] * 9  # names, as nothing says otherwise
    assert look(few, None).task == "classification"


@pytest.mark.parametrize("word", ["NaN", "-inf", "n/a", "not known"])
def test_a_word_among_numbers_is_refused_with_the_way_round(word):
    values = [*map(str, steps(0.35)), *[word] * 6]
    assert set(read(values)[30:]) == {
        f"key 'y' is the text {word!r}, expected a number; if it means that there is none: data.no_label=[{word}]"
    }
    assert read(values, no_label=[word])[30:] == ["none"] * 6


def test_names_with_digits_are_no_numbers():
    assert look([f"A{number}" for number in range(30)], None).task == "classification"
    assert look([f"1.{number}.0" for number in range(30)], None).task == "classification"


def test_fractions_in_lists_of_labels_are_told_as_such():
    assert "expected a list of labels, each a name or a whole number" in read([[0.9, 0.1], [0.5, 0.5]])[0]


def test_white_space_makes_no_other_class():
    assert read([" new  york", "new york ", "new\u00a0york", "\tnew\nyork"]) == [("new york",)] * 4
    assert read([["a ", "a", " b"]]) == [("a", "b")]
    assert read([" odd "], known=(" odd ", "even")) == [(" odd ",)]  # as the model's head spells it


@pytest.mark.parametrize("value", [NAN, INF, -INF, 10**400, -(10**400), 1e39, 2 * LARGEST, "1e400", "-2e19"])
def test_a_number_whose_square_is_no_float32_is_refused(value):
    (found,) = read([value], "regression")
    assert found.startswith("key 'y' is ")
    assert "expected a number" in found


@pytest.mark.parametrize("value", ["nan", "inf", "1_000", "1,5", "", " ", "0x10", "½", "four", True, None, [1], "1 2"])
def test_what_is_no_number_is_refused(value):
    (found,) = read([value], "regression")
    assert "expected a number" in found


@pytest.mark.parametrize(
    ("value", "number"),
    [("3.5", 3.5), (" -2 ", -2), ("+.5", 0.5), ("1e3", 1000), ("7.", 7), (4, 4), (-0.25, -0.25), (Decimal("1.5"), 1.5)],
)
def test_numbers_are_read_as_text_too(value, number):
    assert read([value], "regression") == [(number,)]


@pytest.mark.parametrize("value", [NAN, 0.5, None, "", "  ", [], {}, [1]])
def test_what_is_no_class_is_refused(value):
    (found,) = read([value], "classification")
    assert "expected a label" in found


def test_whole_decimals_are_class_numbers_where_classes_are_asked_for():
    assert read([1.0, 0.0, 2], "classification") == [("1",), ("0",), ("2",)]


@pytest.mark.parametrize(
    ("values", "task"), [(["a\udcff"], "classification"), ([["a", "\ud800b"]], "multilabel"), ([["\ud83d"]], "tokens")]
)
def test_half_a_character_in_a_label_is_told(values, task):
    assert "key 'y' holds half a character" in read(values, task)[0]


def test_class_names_have_one_order_whatever_their_digits():
    assert label_names(["10", "9", "-1", "2"]) == ["-1", "2", "9", "10"]
    assert label_names({"01", "1", "0"}) == ["0", "01", "1"]
    for names in (["²", "1"], ["٣", "2"], ["--1", "2"], ["9" * 5000, "1"], ["①", "③"], ["-", "1"]):
        assert label_names(names) == sorted(names)
