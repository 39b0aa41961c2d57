"""Rows whose prompt and completion are lists of messages, as TRL writes conversations."""

import pytest

from microplane.data.reading.bad_rows import RowError
from microplane.data.reading.formats import recognise
from microplane.data.rendering.causal import causal_renderer
from microplane.errors import DataError
from tests.tiny import CHATML
from tests.tiny_tokenizers import tiny

USER, ANSWER = {"role": "user", "content": "And in spring?"}, {"role": "assistant", "content": "Green."}
BEFORE = [
    {"role": "system", "content": "Name a colour."},
    {"role": "user", "content": "Which in winter?"},
    {"role": "assistant", "content": "White."},
]
TEXTS = {"prompt": "Which in summer?", "completion": "Yellow."}


def read(row, *others):
    return recognise([row, *others], "x.jsonl").example(row, "x.jsonl:1")


def said(row, *others):
    return [(message.role, message.content, message.trained) for message in read(row, *others).messages]


def test_both_are_one_conversation_of_which_the_completion_is_trained():
    whole = [("system", "Name a colour.", True), ("user", "Which in winter?", True), ("assistant", "White.", False)]
    whole += [("user", "And in spring?", True), ("assistant", "Green.", True)]
    assert said({"prompt": [*BEFORE, USER], "completion": [ANSWER]}) == whole
    assert said({"prompt": BEFORE, "completion": [USER, ANSWER]}) == whole
    assert said({"prompt": BEFORE[:2], "completion": [BEFORE[2], USER, ANSWER]})[2] == ("assistant", "White.", True)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "completion": "Green."},
        {"prompt": "And in spring?", "completion": [ANSWER]},
        {"instruction": [USER], "output": [ANSWER]},
        {"question": [USER], "answer": [ANSWER]},
        {"prompt": [{"from": "human", "value": "And in spring?"}], "response": [{"from": "gpt", "value": "Green."}]},
    ],
)
def test_one_side_may_be_a_text_and_names_are_those_of_other_rows(row):
    assert said(row) == [("user", "And in spring?", True), ("assistant", "Green.", True)]
    assert said(row, dict.fromkeys(row, "Grey.")) == said(row)


def test_rows_of_texts_may_stand_beside():
    rows = [TEXTS, {"prompt": [USER], "completion": [ANSWER]}]
    form = recognise(rows, "x.jsonl")
    assert [form.example(row, "x").messages[0].content for row in rows] == ["Which in summer?", "And in spring?"]


def test_tools_and_a_system_column_go_with_them():
    tool = {"type": "function", "function": {"name": "look"}}
    example = read({"prompt": [USER], "completion": [ANSWER], "tools": [tool], "system": "Name a colour."})
    assert example.tools == (tool,)
    assert example.system == "Name a colour."


def test_earlier_answers_are_no_targets():
    tokenizer = tiny(special=("<|im_start|>", "<|im_end|>"), template=CHATML, eos="<|im_end|>")
    ((ids, trained),) = causal_renderer(tokenizer).render(read({"prompt": [*BEFORE, USER], "completion": [ANSWER]}))
    targets = [token for token, target in zip(ids, trained, strict=True) if target]
    assert tokenizer.decode(targets, skip_special=False) == "Green.<|im_end|>"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": [USER], "completion": [USER]}, "key 'completion' holds user"),
        ({"prompt": [ANSWER], "completion": [ANSWER]}, r"prompt \+ completion\[0\] is from the assistant"),
        ({"prompt": [USER], "completion": [ANSWER, USER]}, r"completion ends with the user"),
        ({"prompt": [USER], "completion": []}, "expected text"),
        ({"prompt": [USER], "completion": " "}, "answer"),
        ({"prompt": [USER], "completion": [{"role": "assistant", "content": ""}]}, r"completion\[0\].content"),
    ],
)
def test_what_is_no_conversation_is_refused(row, says):
    with pytest.raises((RowError, DataError), match=says):
        read(row)


def test_an_input_beside_messages_is_not_lost():
    rows = [{**TEXTS, "context": "It is hot."}] * 3 + [{"prompt": [USER], "completion": [ANSWER], "context": "Cold."}]
    assert "not used: context" in str(recognise(rows, "x.jsonl"))
    form = recognise(rows[:3], "x.jsonl")
    assert form.example(rows[0], "x").messages[0].content.endswith("It is hot.")
    with pytest.raises(RowError, match="key 'context' is the text 'Cold.' beside a list of messages"):
        form.example(rows[3], "x")
