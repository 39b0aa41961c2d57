"""Keys of a message beside role and content: honoured, refused, or named as not used."""

from __future__ import annotations

import json

import pytest

from microplane.data.reading.bad_rows import RowError
from microplane.data.reading.conversations import THOUGHTS, TRAINED
from microplane.data.reading.example import Example
from microplane.data.reading.formats import recognise

CALL = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}
TOOL = {"type": "function", "function": {"name": "light", "parameters": {}}}


def read(*messages: dict, **columns) -> Example:
    row = {"messages": list(messages), **columns}
    return recognise([row], "x.jsonl").example(row, "x.jsonl:1")


def answered(**keys) -> Example:
    return read({"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **keys})


def complaint(*messages: dict, **columns) -> str:
    with pytest.raises(RowError) as caught:
        read(*messages, **columns)
    return caught.value.problem.message


def test_a_developers_message_is_the_system_message():
    turns = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    for role in ("developer", "Developer"):
        example = read({"role": role, "content": "Be brief."}, *turns)
        assert (example.messages[0].role, example.system) == ("system", "Be brief.")
    twice = complaint({"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, *turns)
    assert twice == "messages[1] is from the system, expected the user"
    assert complaint(*turns, {"role": "developer", "content": "d"}).startswith("messages[2] is from the system")


@pytest.mark.parametrize("nothing", [None, "", " "])
def test_a_role_or_text_that_stands_under_one_of_its_two_names_is_read_from_there(nothing):
    asked = {"role": nothing, "from": "human", "content": nothing, "value": "q"}
    example = read(asked, {"role": "assistant", "from": nothing, "content": "a", "value": nothing})
    assert [(message.role, message.content) for message in example.messages] == [("user", "q"), ("assistant", "a")]


def test_a_message_that_says_two_things_of_itself_is_refused():
    answer = {"role": "assistant", "content": "a"}
    alike = {"role": "user", "from": "human", "content": "q", "value": "q"}
    row = {"messages": [alike, answer]}
    form = recognise([row], "x.jsonl")
    assert form.example(row, "x.jsonl:1").messages[0].content == "q"
    assert "not used" not in str(form)
    assert complaint({**alike, "from": "gpt"}, answer) == (
        "messages[0].role is the text 'user' and messages[0].from the text 'gpt', expected one of them"
    )
    assert complaint({**alike, "value": "p"}, answer) == (
        "messages[0].content is the text 'q' and messages[0].value the text 'p', expected one of them"
    )
    assert "messages[1].content is the text 'user'" in complaint(
        alike, {"role": "assistant", "content": "user", "value": "human"}
    )


@pytest.mark.parametrize("key", TRAINED)
@pytest.mark.parametrize(
    ("value", "trained"), [(0, False), (False, False), (0.0, False), (1, True), (True, True), (None, True)]
)
def test_a_weight_says_whether_an_answer_is_trained(key, value, trained):
    assert answered(**{key: value}).messages[1].trained is trained


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", [1]])
def test_other_weights_are_refused(value):
    text = complaint({"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": value})
    assert "messages[1].weight is" in text
    assert "expected 0 or 1 (false or true)" in text


def test_a_weight_of_a_question_may_only_be_nothing():
    assert read({"role": "user", "content": "q", "train": False}, {"role": "assistant", "content": "a"})
    text = complaint({"role": "user", "content": "q", "train": True}, {"role": "assistant", "content": "a"})
    assert "messages[0].train is true, but only the assistant's messages are trained" in text


def test_two_weights_that_differ_are_refused():
    assert "that it is trained and that it is not" in complaint(
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1, "train": False}
    )


@pytest.mark.parametrize("key", THOUGHTS)
def test_thoughts_are_kept_under_any_name(key):
    assert answered(**{key: "hm"}).messages[1].thoughts == "hm"
    assert answered(**{key: None}).messages[1].thoughts == ""
    assert "only answers have thoughts" in complaint(
        {"role": "user", "content": "q", key: "hm"}, {"role": "assistant", "content": "a"}
    )


def test_different_thoughts_are_refused():
    text = complaint(
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "x", "thinking": "y"}
    )
    assert "different thoughts: reasoning and thinking" in text


def test_calls_have_their_arguments_as_objects():
    call = {"type": "function", "id": "c1", "function": {"name": "light", "arguments": {"on": True}}}
    last = {"role": "assistant", "content": "done"}
    for keys in ({"tool_calls": [CALL]}, {"function_call": CALL["function"]}):
        example = read(
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, **keys},
            {"role": "tool", "content": "ok", "name": "light", "tool_call_id": "c1"},
            last,
            tools=[TOOL],
        )
        first, tool = example.messages[1:3]
        assert first.content == ""
        assert first.extra["tool_calls"][0]["function"] == call["function"]
        assert (tool.role, tool.extra) == ("tool", {"name": "light", "tool_call_id": "c1"})
        assert example.tools == (TOOL,)


@pytest.mark.parametrize("under", ["content", "value"])
def test_what_is_said_beside_a_call_is_kept(under):
    [_, calling, *_] = read(
        {"from": "human", "value": "q"},
        {"from": "gpt", under: "I look.", "tool_calls": [CALL]},
        {"from": "tool", "value": "ok"},
        {"from": "gpt", "value": "done"},
    ).messages
    assert (calling.content, len(calling.extra["tool_calls"])) == ("I look.", 1)


@pytest.mark.parametrize("name", ["arguments", "args", "parameters", "input"])
def test_what_a_function_is_called_with_is_known_by_every_name(name):
    called = {"name": "light", name: {"on": True}}
    nested = {"type": "function", "id": "c1", "function": called}
    flat = {**called, "id": "c1", "type": "tool_call"}
    expected = {"type": "function", "id": "c1", "function": {"name": "light", "arguments": {"on": True}}}
    both = {**nested, "function": {**called, "arguments": '{"on": true}'}}
    for call in (nested, flat, both, {**nested, "function": json.dumps(called)}):
        for calls in ([call], json.dumps([call])):
            example = read({"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls})
            assert example.messages[1].extra["tool_calls"] == [expected]
    alone = read({"role": "user", "content": "q"}, {"role": "assistant", "function_call": json.dumps(called)})
    assert alone.messages[1].extra["tool_calls"] == [{"type": "function", "function": expected["function"]}]


def test_a_call_without_arguments_has_none():
    for arguments in ("", None, "{}", {}):
        call = {"function": {"name": "now", "arguments": arguments}}
        last = read({"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]})
        assert last.messages[1].extra["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (
            [{"function": {"name": "f", "arguments": "{"}}],
            "arguments is the text '{', expected an object, or one as JSON",
        ),
        ([{"function": {"name": "f", "arguments": [1]}}], "tool_calls[0].arguments is a list [1], expected an object"),
        ([{"name": "f", "args": '"x"'}], """tool_calls[0].args is the text '"x"', expected an object"""),
        (
            [{"name": "f", "input": {"a": 1}, "arguments": {"a": 2}}],
            "messages[1].tool_calls[0] holds different arguments and input; expected one of them",
        ),
        ([{"function": {}}], "messages[1].tool_calls[0] is an object"),
        ("f()", "messages[1].tool_calls is the text 'f()', expected a list of calls"),
    ],
)
def test_broken_calls_are_refused(calls, message):
    assert message in complaint(
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}
    )


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_are_none(tools):
    assert read({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, tools=tools).tools == ()


def test_tools_may_be_written_as_text():
    turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    assert read(*turns, tools='[{"name": "f"}]').tools == ({"name": "f"},)
    assert "key 'tools' is the text 'f, g', expected a list of objects" in complaint(*turns, tools="f, g")


def test_who_follows_whom():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert read(*turns).messages[-1].extra
    assert "messages[2] is from the user, expected the tool" in complaint(
        *turns, {"role": "user", "content": "r"}, {"role": "assistant", "content": "a"}
    )
    assert "messages[2] is from the tool, expected the user" in complaint(
        turns[0],
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    )


def test_other_keys_are_named_and_null_is_nothing():
    row = {
        "chat": [
            {"role": "user", "content": "q", "id": 7, "refusal": None},
            {"role": "assistant", "content": "a", "id": 8},
        ]
    }
    form = recognise([row], "x.jsonl")
    form.example(row, "x.jsonl:1")
    assert str(form) == "messages (chat; not used: chat[].id)"


def test_what_is_trained_is_part_of_a_rows_identity():
    plain = answered()
    assert plain.hash() == answered(weight=1, name=None, tool_calls=[]).hash()
    others = [answered(weight=0), answered(thinking="hm"), answered(name="Bo")]
    assert len({example.hash() for example in [plain, *others]}) == 4


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"mask": 1}, "messages[1].mask is the number 1, which tools read in different ways"),
        ({"Ignore": True}, "messages[1].Ignore is true, which tools read in different ways"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "say with `weight` (0 or 1)"),
        ({"Weight": 0}, "has the key 'Weight', expected 'weight'"),
        ({" train": False}, "has the key ' train', expected 'train'"),
        ({"Reasoning_Content": "hm"}, "expected 'reasoning_content'"),
        ({"Tool_Calls": [CALL]}, "expected 'tool_calls'"),
    ],
)
def test_a_key_that_may_say_something_of_training_is_not_passed_over(keys, says):
    asked = {"role": "user", "content": "q"}
    assert says in complaint(asked, {"role": "assistant", "content": "a", **keys})
    assert answered(**dict.fromkeys(keys)) == answered()  # null is nothing


def test_messages_may_be_written_as_text():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "[a]", "weight": 1}]
    for key in ("messages", "conversations"):
        row = {key: " " + json.dumps(messages)}
        assert recognise([row], "x.csv").example(row, "").messages == read(*messages).messages
    for text in ("[{", "q", '{"role": "user"}', ""):
        with pytest.raises(RowError, match="expected a list of"):
            recognise([row], "x.csv").example({"conversations": text}, "")


def test_a_role_that_is_a_call():
    asked, result, answer = (
        {"from": who, "value": text} for who, text in (("human", "q"), ("observation", "r"), ("gpt", "a"))
    )
    call = {"name": "light", "arguments": {"on": True}}
    plain = read(asked, {"from": "gpt", "tool_calls": [call], "value": None}, result, answer)
    for said in (call, json.dumps(call), [call], json.dumps([call]), {**call, "arguments": '{"on": true}'}):
        assert read(asked, {"from": "function_call", "value": said}, result, answer).messages == plain.messages
    assert (
        read(asked, {"from": "function_call", "value": call, "weight": 0}, result, answer).messages[1].trained is False
    )
    for said in ("light(on)", "", None, 5, "[]"):
        text = complaint(asked, {"from": "function_call", "value": said}, result, answer)
        assert text.startswith("messages[1].value is ")
        assert "expected the call as JSON" in text


def test_lists_of_roles_and_contents_are_a_list_of_messages():
    """As a feature of `datasets` that is a sequence of objects comes out of a Parquet file."""
    row = {"messages": {"role": ["user", "assistant"], "content": ["a", "b"], "name": None}}
    said = recognise([row], "x").example(row, "x:1").messages
    assert [(message.role, message.content) for message in said] == [("user", "a"), ("assistant", "b")]
    weighted = {"messages": {"from": ["human", "gpt"] * 2, "value": [*"abcd"], "weight": [None, 0, None, 1]}}
    trained = recognise([weighted], "x").example(weighted, "x:1").messages
    assert [message.trained for message in trained] == [True, False, True, True]


@pytest.mark.parametrize(
    "lists", [{}, {"role": ["user", "assistant"], "content": ["a"]}, {"role": "user", "content": "a"}]
)
def test_lists_of_unequal_length_are_refused(lists):
    row = {"messages": lists}
    with pytest.raises(RowError, match="expected a list of {role, content}"):
        recognise([row], "x").example(row, "x:1")
