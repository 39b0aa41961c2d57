import json

import pytest

from microplane.config.build import choices
from microplane.config.knobs import DataKnobs
from microplane.data.reading.bad_rows import LISTED, NoLabel, Problem, Problems, RowError
from microplane.data.reading.example import Example, Message
from microplane.data.reading.formats import FORMATS, recognise
from microplane.errors import DataError

USER, BOT = Message("user", "a"), Message("assistant", "b")
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def read(row: dict, wanted: str = "auto"):
    return recognise([row], "x.jsonl", wanted).example(row, "x.jsonl:1")


def complaint(row: dict, like: dict) -> Problem:
    with pytest.raises(RowError) as caught:
        recognise([like], "x.jsonl").example(row, "x.jsonl:1")
    return caught.value.problem


def refused(*rows: dict, wanted: str = "auto", name: str = "x.jsonl") -> str:
    with pytest.raises(DataError) as caught:
        recognise(rows, name, wanted)
    return str(caught.value)


# Recognising


@pytest.mark.parametrize(
    ("row", "printed"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt/completion (prompt -> completion)"),
        ({"prompt": "a", "response": "b"}, "prompt/completion (prompt -> response)"),
        ({"question": "a", "answer": "b"}, "prompt/completion (question -> answer)"),
        ({"Question": "a", " answer": "b"}, "prompt/completion (Question ->  answer)"),
        ({"inputs": "a", "targets": "b"}, "inputs/targets (inputs -> targets)"),
        ({"input": "a", "output": "b"}, "inputs/targets (input -> output)"),
        ({"source": "a", "target": "b"}, "inputs/targets (source -> target)"),
        ({"document": "a", "summary": "b"}, "inputs/targets (document -> summary)"),
        ({"text": "a", "label": "b"}, "text/label (text -> label)"),
        ({"sentence": "a", "label": "b", "idx": 3}, "text/label (sentence -> label; not used: idx)"),
        ({"instruction": "a", "output": "b"}, "instruction/input/output (instruction -> output)"),
        ({"instruction": "a", "input": "", "output": "b"}, "instruction/input/output (instruction + input -> output)"),
        (
            {"instruction": "a", "input": None, "output": "b"},
            "instruction/input/output (instruction + input -> output)",
        ),
        (
            {"instruction": "a", "context": " ", "response": "b", "category": "qa", "text": "all of it"},
            "instruction/input/output (instruction + context -> response; not used: category, text)",
        ),
        ({"messages": TURNS, "prompt": "a"}, "messages (messages; not used: prompt)"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "conversations (conversations)",
        ),
        ({"chat": TURNS}, "messages (chat)"),
    ],
)
def test_what_rows_look_like_decides_their_format(row, printed):
    form = recognise([row], "x.jsonl")
    assert str(form) == printed
    example = form.example(row, "x.jsonl:17")
    assert (example.messages, example.text, example.where) == ((USER, BOT), None, "x.jsonl:17")


def test_every_format_that_can_be_chosen_is_listed_and_read():
    named = set(choices(DataKnobs.model_fields["format"])) - {"auto"}
    assert named == set(FORMATS)
    row = {
        "prompt": "a",
        "completion": "b",
        "inputs": "a",
        "targets": "b",
        "messages": TURNS,
        "text": "t",
        "label": "b",
    }
    assert recognise([row], "x").name == "messages"
    for name in named - {"text", "instruction/input/output"}:
        assert recognise([row], "x", name).name == name.replace("conversations", "messages")
        assert read({**row, "text": "a"}, name).messages == (USER, BOT)
    assert read(row, "text").text == "t"
    assert read({"instruction": "a", "output": "b", "messages": []}, "instruction/input/output").messages == (USER, BOT)
    assert read({"instruction": "i", "input": "a", "output": "b"}, "inputs/targets").messages == (USER, BOT)


def test_plain_text_stays_text():
    example = read({"text": " a\n"})
    assert (example.messages, example.text) == (None, " a\n")


def test_an_instruction_and_its_input_are_joined_by_an_empty_line():
    assert (
        read({"instruction": "Say it.", "input": "in French", "output": "b"}).messages[0].content
        == "Say it.\n\nin French"
    )


@pytest.mark.parametrize("rest", [{"prompt": "a", "response": "b"}, {"messages": TURNS}])
def test_a_column_may_hold_the_system_prompt(rest):
    system = Message("system", "Be brief.")
    assert read({"system": "Be brief.", **rest}).messages == (system, USER, BOT)
    assert read({"system_prompt": "", **rest}).messages == (USER, BOT)


@pytest.mark.parametrize(("label", "text"), [(3, "3"), (-1, "-1"), (True, "true"), ("pos", "pos")])
def test_labels_may_be_whole_numbers(label, text):
    assert read({"text": "a", "label": label}).messages[1].content == text


def test_content_in_parts_is_joined():
    content = [{"type": "text", "text": "a"}, {"text": "b"}]
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": content}, TURNS[1]]
    assert [message.content for message in read({"messages": turns}).messages] == ["", "ab", "b"]


def test_a_key_that_is_missing_in_a_few_first_rows_does_not_hide_the_format():
    assert recognise([{"prompt": "a"}, {"prompt": "a", "completion": "b"}], "x").name == "prompt/completion"


def test_ambiguous_keys_are_refused_with_both_readings():
    text = refused({"prompt": "a", "input": "b", "output": "c"})
    assert "x.jsonl: the keys ['prompt', 'input', 'output'] can be read in more than one way" in text
    assert "prompt/completion (prompt -> output), or inputs/targets (input -> output)" in text
    assert "Remove or rename the columns that are not meant, say which are with --set data.fields={...}, or" in text
    assert recognise([{"prompt": "a", "input": "b", "output": "c"}], "x", "inputs/targets").columns["prompt"] == "input"
    text = refused({"question": "a", "answer": "b", "response": "c"})
    assert "(question -> response). Remove or rename" in text
    assert text.endswith("data.fields={...}")


def test_unknown_keys_are_refused_with_near_names_and_all_formats():
    text = refused({"promt": "a", "complete": "b"})
    assert text.startswith(
        "x.jsonl: the keys ['promt', 'complete'] are not understood. 'promt': Did you mean 'prompt'?"
    )
    assert all(f"\n  {name}: " in text for name in FORMATS)
    assert "name its columns" not in text
    assert "The first line of a CSV file must name its columns." in refused({"1": "x"}, name="x.csv")
    assert "and 88 more]" in refused({f"k{i}": i for i in range(100)})


def test_a_chosen_format_that_does_not_fit_names_what_it_needs():
    text = refused({"question": "a", "answer": "b"}, wanted="text/label")
    assert "are not understood as text/label. Possible:\n  text/label: text or sentence -> label" in text
    assert "instruction" not in text


# Bad rows

PAIR = {"prompt": "a", "completion": "b"}
CHAT = {"messages": TURNS}


def turns(*said: tuple) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


@pytest.mark.parametrize(
    ("row", "like", "kind", "message"),
    [
        ({"prompt": "a"}, PAIR, "missing key", "key 'completion' is missing, expected text; the row has ['prompt']"),
        ({"prompt": "a", "completion": 3}, PAIR, "not text", "key 'completion' is the number 3, expected text"),
        ({"prompt": "a", "completion": 1.5}, PAIR, "not text", "key 'completion' is the number 1.5, expected text"),
        ({"prompt": "a", "completion": True}, PAIR, "not text", "key 'completion' is true, expected text"),
        ({"prompt": ["a"], "completion": ""}, PAIR, "not text", "key 'prompt' is a list ['a'], expected text"),
        ({"prompt": {"a": 1}, "completion": ""}, PAIR, "not text", "key 'prompt' is an object {'a': 1}, expected text"),
        ({"prompt": b"a", "completion": ""}, PAIR, "not text", "key 'prompt' is a value of type bytes, expected text"),
        ({"prompt": "a", "completion": None}, PAIR, "null", "key 'completion' is null, expected text"),
        (
            {"prompt": "a", "completion": " \n"},
            PAIR,
            "empty answer",
            "key 'completion' is the text ' \\n', expected the answer",
        ),
        ({"prompt": "", "completion": "b"}, PAIR, "empty prompt", "key 'prompt' is the text '', expected the prompt"),
        (
            {"prompt": "\ud800", "completion": "b"},
            PAIR,
            "broken text",
            "holds half a character (\\ud800), expected whole",
        ),
        (
            {"instruction": "a", "input": 3, "output": "b"},
            {"instruction": "a", "input": "", "output": "b"},
            "not text",
            "key 'input' is the number 3, expected text",
        ),
        ({"text": ""}, {"text": "a"}, "empty text", "key 'text' is the text '', expected the text"),
        (
            {"text": "a", "label": 1.5},
            {"text": "a", "label": 1},
            "not text",
            "key 'label' is the number 1.5, expected text",
        ),
        ({"text": "a"}, {"text": "a", "label": 1}, "missing key", "key 'label' is missing, expected a label"),
        ({"messages": "a"}, CHAT, "not a list", "key 'messages' is the text 'a', expected a list of {role, content}"),
        ({"messages": None}, CHAT, "null", "key 'messages' is null, expected a list"),
        ({"messages": []}, CHAT, "no assistant message", "key 'messages' holds no message, expected at least one"),
        ({"messages": ["a"]}, CHAT, "not a message", "messages[0] is the text 'a', expected {role, content}"),
        (
            {"messages": [{"content": "a"}]},
            CHAT,
            "missing key",
            "key 'from' is missing, expected the role of messages[0]",
        ),
        (
            {"messages": [{"role": "user"}]},
            CHAT,
            "missing key",
            "key 'value' is missing, expected the text of messages[0]",
        ),
        (
            turns(("narrator", "a")),
            CHAT,
            "unknown role",
            "messages[0].role is the text 'narrator', expected system, user, human",
        ),
        (turns((3, "a")), CHAT, "unknown role", "messages[0].role is the number 3, expected system"),
        (
            turns(("user", "a")),
            CHAT,
            "no assistant message",
            "key 'messages' holds user, expected at least one assistant",
        ),
        (turns(("user", "a"), ("assistant", "")), CHAT, "empty answer", "messages[1].content is the text '', expected"),
        (turns(("user", ""), ("assistant", "b")), CHAT, "empty prompt", "messages[0].content is the text '', expected"),
        (turns(("user", "a"), ("assistant", None)), CHAT, "null", "messages[1].content is null, expected text"),
        (turns(("assistant", "a")), CHAT, "wrong role order", "messages[0] is from the assistant, expected the user"),
        (
            turns(("user", "a"), ("user", "b"), ("assistant", "c")),
            CHAT,
            "wrong role order",
            "messages[1] is from the user, expected the assistant",
        ),
        (
            turns(("user", "a"), ("assistant", "b"), ("system", "c"), ("assistant", "d")),
            CHAT,
            "wrong role order",
            "messages[2] is from the system, expected the user",
        ),
        (
            turns(("user", "a"), ("assistant", "b"), ("user", "c")),
            CHAT,
            "wrong role order",
            "messages ends with the user, expected the assistant's answer",
        ),
        (
            turns(("user", [{"type": "image", "url": "x"}])),
            CHAT,
            "not text",
            "messages[0].content[0] is an object {'type': 'image', 'url': 'x'}, expected {\"type\": \"text\"",
        ),
        (
            turns(("user", [{"text": 1}])),
            CHAT,
            "not text",
            "messages[0].content[0].text is the number 1, expected text",
        ),
        (
            {"system": "x", **turns(("system", "y"), ("user", "a"), ("assistant", "b"))},
            {"system": "x", **CHAT},
            "wrong role order",
            "key 'system' and the first message both hold a system prompt, expected one",
        ),
    ],
)
def test_a_bad_row_is_told_with_key_value_and_expectation(row, like, kind, message):
    problem = complaint(row, like)
    assert problem.kind == kind
    assert message in problem.message


def test_offending_values_are_shortened():
    assert len(complaint({"prompt": ["x" * 10**6] * 1000, "completion": ""}, PAIR).message) < 400
    assert len(complaint({"prompt": 10**4000, "completion": ""}, PAIR).message) < 120


def test_bad_rows_are_listed_up_to_a_number_and_counted_by_kind():
    problems = Problems()
    for line in range(1, 338):
        problems.add(f"x.jsonl:{line}", Problem("null" if line % 3 else "not text", "key 'a' is bad"))
    lines = str(problems.error("x.jsonl", 5000)).splitlines()
    assert lines[0] == "x.jsonl: 337 of 5,000 rows cannot be used:"
    assert lines[1] == "  x.jsonl:1: key 'a' is bad"
    assert len(lines) == LISTED + 4
    assert lines[-3:] == [
        "  and 317 more",
        "In all: 225 x null, 112 x not text.",
        "Correct them, or leave them out with --skip-bad-rows.",
    ]


# Content


def test_equal_content_has_equal_hashes_whatever_its_format():
    examples = [
        read({"prompt": "a", "completion": "b"}),
        read({"messages": TURNS}),
        read({"input": "a", "output": "b"}),
    ]
    assert len({example.hash() for example in examples}) == 1
    others = [read({"prompt": "ab", "completion": "b"}), read({"prompt": "a", "completion": "bb"}), read({"text": "a"})]
    assert len({example.hash() for example in [*examples, *others]}) == 4
    pairs = [Example(None, "a", "x:1", ("yes",), second_text=second) for second in ("", "b", "c")]
    assert len({pair.hash() for pair in pairs}) == 3
    assert (
        examples[0].hash() == 5118508961677734335
    )  # the same on every machine and in every version, or splits would change


def test_what_stands_beside_the_text_of_an_answer_tells_rows_apart():
    beside = [{}, {"trained": False}, {"thoughts": "a"}, {"thoughts": "b"}, {"extra": {"name": "a"}}]
    rows = [Example((USER, Message("assistant", "b", **more)), None, "x:1") for more in beside]
    assert len({row.hash() for row in rows}) == len(beside)


def test_answers_that_are_labels_may_say_that_there_is_none():
    """As where a task head learns them: -100 always, -1 beside the numbers of three classes, or as the knob says."""

    def left_out(labels, no_label=("auto",)):
        rows = [{"text": "a", "label": label} for label in labels]
        form = recognise(rows, "x.jsonl", no_label=no_label)
        left = []
        for row in rows:
            try:
                form.example(row, "x.jsonl:1")
            except NoLabel:
                left.append(row["label"])
        return left

    assert left_out([0, 1, 2, -1, -100, "-100"]) == [-1, -100, "-100"]
    assert left_out([0, 1, -1, -100]) == [-100]
    assert left_out(["good", "bad", "-100", "n/a"]) == ["-100"]
    assert left_out(["good", "bad", "-100", "n/a"], ("n/a",)) == ["n/a"]
    assert left_out([0, 1, 2, -1, -100], ()) == []


@pytest.mark.parametrize("answer", ["response", "Answer", "completion", "target", "output"])
def test_a_text_beside_an_answer_may_be_its_question(answer):
    rows = [{"text": "Name a fruit.", answer: "A pear."}]
    text = refused(*rows)
    assert text.startswith(f"x.jsonl: 'text' may be all that is to be learnt, or the question that {answer!r} answers.")
    fields = {"prompt": "text", "completion": answer}
    assert f"--set data.format=text, or --set 'data.fields={{prompt: text, completion: {answer}}}'" in text
    said = recognise(rows, "x.jsonl", fields=fields).example(rows[0], "x.jsonl:1").messages
    assert [message.content for message in said] == ["Name a fruit.", "A pear."]
    for form in (recognise(rows, "x", "text"), recognise(rows, "x", fields={"text": "text"})):
        assert str(form) == f"text (text; not used: {answer})"
    for nothing in (None, "", 3):
        assert recognise([{"text": "Name a fruit.", answer: nothing}], "x").name == "text"


@pytest.mark.parametrize("name", ["dialogue", "conversation"])
def test_a_talk_that_is_a_text_is_summarised(name):
    row = {"id": "7", name: "A: Are you at home?\nB: In an hour.", "summary": "B is home in an hour."}
    form = recognise([row], "x.jsonl")
    assert str(form) == f"inputs/targets ({name} -> summary; not used: id)"
    assert [message.content for message in form.example(row, "x").messages] == [row[name], row["summary"]]


@pytest.mark.parametrize("written", [list, json.dumps])
def test_a_talk_that_is_a_list_is_a_conversation_also_beside_a_summary(written):
    said = [{"role": "user", "content": "Are you at home?"}, {"role": "assistant", "content": "In an hour."}]
    form = recognise([{"dialogue": written(said), "summary": "An hour."}], "x.jsonl")
    assert str(form) == "messages (dialogue; not used: summary)"
