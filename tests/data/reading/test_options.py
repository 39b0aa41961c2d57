"""Questions whose options stand in another column than the question."""

import json

import pytest

from microplane.data.reading.formats import recognise
from microplane.data.reading.options import options_of
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
