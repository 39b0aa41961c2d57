"""Turns that stand before a question in a column of their own."""

import json

import pytest

from microplane.data.reading.bad_rows import RowError
from microplane.data.reading.formats import recognise
from microplane.errors import DataError

TURNS = [["What is a plane?", "A tool."], ["And a microplane?", "A small rasp."]]
SAID = [("user", "What is a plane?"), ("assistant", "A tool."), ("user", "And a microplane?")]
SAID += [("assistant", "A small rasp.")]
ALPACA = {"instruction": "What is it for?", "output": "For zest."}


def said(row: dict, *others: dict, fields=None) -> list[tuple[str, str]]:
    form = recognise([row, *others], "x.jsonl", fields=fields)
    return [(message.role, message.content) for message in form.example(row, "x.jsonl:1").messages]


@pytest.mark.parametrize("written", [TURNS, json.dumps(TURNS), [tuple(pair) for pair in TURNS]])
@pytest.mark.parametrize("row", [ALPACA, {"prompt": "What is it for?", "response": "For zest."}])
def test_they_are_earlier_turns_of_the_conversation(row, written):
    whole = {**row, "history": written}
    assert said(whole) == [*SAID, ("user", "What is it for?"), ("assistant", "For zest.")]
    assert "history + " in str(recognise([whole], "x.jsonl"))


def test_they_stand_behind_the_system_message_and_before_the_input():
    row = {**ALPACA, "input": "A lemon.", "system": "Be brief.", "history": TURNS[:1]}
    asked = ("user", "What is it for?\n\nA lemon.")
    assert said(row) == [("system", "Be brief."), *SAID[:2], asked, ("assistant", "For zest.")]


def test_earlier_answers_are_trained_as_in_other_conversations():
    messages = recognise([{**ALPACA, "history": TURNS}], "x").example({**ALPACA, "history": TURNS}, "x:1").messages
    assert all(message.trained for message in messages if message.role == "assistant")


@pytest.mark.parametrize("nothing", [None, [], ""])
def test_rows_without_any_stand_beside_others(nothing):
    assert said({**ALPACA, "history": nothing}, {**ALPACA, "history": TURNS}) == said(ALPACA)
    assert said({**ALPACA, "history": nothing}) == said(ALPACA)


def test_few_rows_with_some_are_enough():
    rows = [{**ALPACA, "history": TURNS if number == 7 else []} for number in range(9)]
    form = recognise(rows, "x")
    assert len(form.example(rows[7], "x:8").messages) == 6


def test_a_column_of_that_name_that_holds_text_is_none_and_named():
    row = {**ALPACA, "history": "of art"}
    assert said(row) == said(ALPACA)
    assert str(recognise([row], "x")).endswith("not used: history)")


def test_the_column_can_be_named_and_left_out():
    row = {**ALPACA, "before": TURNS, "history": TURNS[:1]}
    assert said(row, fields={"history": "before"})[:4] == SAID
    assert said(row, fields={"history": None}) == said(ALPACA)
    with pytest.raises(DataError, match="data.fields reads instruction from 'befor'"):
        recognise([row], "x", fields={"instruction": "befor"})


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([["a"]], r"history'?\[0\] is a list \['a'\], expected \[instruction, answer\]"),
        ([["a", "b"], ["c", "d", "e"]], r"history\[1\] is a list"),
        ([{"role": "user", "content": "a"}], "messages with roles belong into a column `messages`"),
        ([["a", " "]], "expected an instruction and an answer"),
        ([["", "b"]], "expected an instruction and an answer"),
        ([["a", None]], r"history\[0\]\[1\] is null, expected text"),
        ({"a": "b"}, r"key 'history' is an object .*, expected a list of \[instruction, answer\]"),
    ],
)
def test_what_is_no_pair_is_told(turns, message):
    form = recognise([{**ALPACA, "history": TURNS}], "x.jsonl")
    with pytest.raises(RowError, match=message):
        form.example({**ALPACA, "history": turns}, "x.jsonl:2")
