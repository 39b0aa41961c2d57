"""Questions whose options stand in another column than the question."""

import json

import pytest

from microplane.data.reading.formats import recognise
from microplane.data.reading.options import options_of
from microplane.data.rendering.labelled import LabelFormat
from microplane.errors import DataError

WORDS = ["a rasp", "a plane", "a tree"]
QUESTION = "What makes zest?"
FORMS = {
    "a list": WORDS,
    "JSON": json.dumps(WORDS),
    "numpy": "['a rasp' 'a plane' 'a tree']",
    "text and label": {"text": WORDS, "label": ["A", "B", "C"]},
    "by letter": dict(zip("ABC", WORDS, strict=True)),
}


def rows(answer, options=WORDS, question=QUESTION, column="choices"):
    return [{"question": question, column: options, "answer": answer}] * 4


@pytest.mark.parametrize("answer", [0, "0", "3", "A", "b", "(C)", "B."])
@pytest.mark.parametrize("column", ["choices", "Options"])
def test_an_answer_that_names_an_unseen_option_is_refused_with_the_way_round(answer, column):
    with pytest.raises(DataError) as caught:
        recognise(rows(answer, column=column), "quiz.jsonl")
    text = str(caught.value)
    assert text.startswith(f"quiz.jsonl: 'answer' is the number or letter of an option in {column!r}, and 'question'")
    assert "Write them into 'question', each with its letter" in text


@pytest.mark.parametrize("form", FORMS)
def test_options_are_found_in_the_forms_of_the_field(form):
    assert options_of(FORMS[form]) == WORDS
    with pytest.raises(DataError, match="does not show the options"):
        recognise(rows("B", FORMS[form]), "x")


@pytest.mark.parametrize(
    ("answer", "options", "question"),
    [
        ("a rasp", WORDS, QUESTION),  # the option's own text
        ("B", WORDS, "What? A. a rasp B. a plane C. a tree"),  # shown in the question
        ("4", ["4", "5"], "2 + 2?"),  # a number that is the answer itself
        ("D", WORDS, QUESTION),  # a letter beyond the options is an answer like any other
        ("A", "abc", QUESTION),  # no list of options
        ("A", ["one"], QUESTION),
    ],
)
def test_answers_that_stand_for_themselves_are_read(answer, options, question):
    form = recognise(rows(answer, options, question), "x")
    assert [message.content for message in form.example(rows(answer, options, question)[0], "x:1").messages] == [
        question,
        answer,
    ]
    assert "not used: choices" in str(form)


def test_options_in_an_input_are_seen():
    row = {"instruction": QUESTION, "input": " / ".join(WORDS), "options": WORDS, "output": "A"}
    assert recognise([row], "x").name == "instruction/input/output"
    with pytest.raises(DataError, match="'instruction' does not"):
        recognise([row | {"input": ""}], "x")


COLUMNS = [
    ["choice1", "choice2"],
    ["ending0", "ending1", "ending2"],
    ["Option A", "Option B"],
    ["sol_1", "sol_2"],
    ["A", "B", "C", "D"],
    ["opa", "opb", "opc", "opd"],
]


def spread(names, label, first="a rasp"):
    """A question with each of its options in a column."""
    return {
        "question" if "answer" in label else "text": QUESTION,
        **dict(zip(names, [first, "a plane", "a tree", "a bee"], strict=False)),
        **label,
    }


@pytest.mark.parametrize("names", COLUMNS, ids=lambda names: names[0])
def test_options_that_have_a_column_each_are_options(names):
    with pytest.raises(DataError, match="does not show the options"):
        recognise([spread(names, {"answer": "1"})], "x")
    shown = spread(names, {"answer": "1"}) | {"question": f"{QUESTION} a rasp, a plane, a tree, a bee"}
    assert recognise([shown], "x").columns["answer"] == "answer"
    rows = [spread(names, {"label": 0}), spread(names, {"label": 1}, first="a spoon")]
    for read in (recognise, LabelFormat):
        with pytest.raises(DataError) as caught:
            read(rows, "quiz.csv")
        assert str(caught.value).startswith("quiz.csv: 'label' is the number or letter of an option in [")


def test_columns_that_only_look_like_options_are_none():
    for names in (["a", "b"], ["choice1"], ["grade1", "grade2", "grade3"]):
        rows = [spread(names, {"label": 0}), spread(names, {"label": 1}, first="a spoon")]
        assert LabelFormat(rows, "x").task == "classification"
        assert recognise([spread(names, {"answer": "1"})], "x").columns["answer"] == "answer"


@pytest.mark.parametrize("read", [recognise, LabelFormat])
@pytest.mark.parametrize("labels", [[0, 1], ["A", "B"], ["1", "2"]])
def test_a_label_that_numbers_the_options_of_its_own_row_is_no_class(read, labels):
    others = ["a spoon", *WORDS[1:]]
    rows = [{"text": f"{QUESTION} {n}", "options": (WORDS, others)[n % 2], "label": labels[n % 2]} for n in range(6)]
    with pytest.raises(DataError) as caught:
        read(rows, "quiz.jsonl")
    text = str(caught.value)
    assert "an option in 'options', and the options are others in each row, so that it is no class" in text
    assert "Make a row of each option, with the question as `text`, the option as `text_pair`" in text
    assert "--set 'data.fields={label: label}'" in text
    assert str(read(rows, "x", fields={"label": "label"})).count("options") == 1  # as not used


@pytest.mark.parametrize("read", [recognise, LabelFormat])
def test_options_that_are_the_same_in_all_rows_are_classes(read):
    rows = [{"text": f"{QUESTION} {n}", "options": WORDS, "label": n % 3} for n in range(6)]
    assert "-> label; not used: options" in str(read(rows, "x"))
    named = [row | {"options": [*WORDS, f"{n} more"], "label": WORDS[n % 3]} for n, row in enumerate(rows)]
    assert "-> label; not used: options" in str(read(named, "x"))
