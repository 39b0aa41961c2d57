"""Files of messages and columns, drawn at random: what is trained is what a reference written here says, or refused.

What is trained of a row is a set of pairs: all that stands before an answer, and the answer with its stop. They are
rendered in Python from the definition: behind the generation prompt of the conversation so far, what the template
writes when the answer is the last message.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microplane.config.knobs import DataKnobs
from microplane.data.preparing import first_pass as reading
from microplane.data.rendering.causal import causal_renderer
from microplane.errors import DataError
from tests.data.rendering.test_what_is_trained import PLAIN, SPECIAL, TOOLS

FIFTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORD = st.text("abcdeé ", min_size=1, max_size=9).map(str.strip).filter(bool)
BLANK = st.sampled_from([None, "", "  "])


@pytest.fixture(autouse=True)
def few_first_rows(monkeypatch):
    monkeypatch.setattr(reading, "FIRST", 4)  # so that most columns begin late


def trained(tokenizer, path: Path, knobs: DataKnobs) -> tuple[Counter, int]:
    """The pairs that are trained of a file, and how many of its rows are refused."""
    knobs = knobs.model_copy(update={"train": str(path), "skip_bad_rows": True})
    try:
        split = reading.first_pass({"train": [path]}, knobs, None, hold_out=False).splits["train"]
    except DataError as error:  # all rows are bad
        assert "rows cannot be used" in str(error), error
        return Counter(), len(path.read_text().splitlines())
    found: Counter = Counter()
    refused, renderer = split.problems.total, causal_renderer(tokenizer)
    for _, _, example in reading.examples(reading.Split("train", [path], split.format), knobs):
        try:
            rows = renderer.rows(example, 10**6, 10**6)
        except DataError:
            refused += 1
            continue
        found.update(pair for row in rows for pair in pairs_of(tokenizer, row.ids, row.targets))
    return found, refused


def pairs_of(tokenizer, ids: list[int], targets: list[bool]) -> list[tuple[str, str]]:
    starts = [i for i, target in enumerate(targets) if target and not targets[i - 1]]
    ends = [i + 1 for i, target in enumerate(targets) if target and not (targets[i + 1 :] or [False])[0]]
    return [
        (tokenizer.decode(ids[:start], skip_special=False), tokenizer.decode(ids[start:end], skip_special=False))
        for start, end in zip(starts, ends, strict=True)
    ]


# Messages


def rendered(messages: list[dict], tools: list, thinks: bool, asks: bool = False) -> str:
    """What the templates PLAIN and TOOLS write."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)
    text = "".join(f"<tool>{json.dumps(tool)}" for tool in tools) if thinks else ""
    for number, message in enumerate(messages):
        content = message.get("content") or ""
        if message["role"] == "assistant" and thinks:
            before, mark, behind = content.partition("</think>")
            thought = message.get("reasoning_content") or (before.removeprefix("<think>") if mark else "")
            content = (behind if mark else content).strip()
            if number > last:
                content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
            for call in message.get("tool_calls") or []:
                content += f"<call>{json.dumps(call['function'], ensure_ascii=False)}</call>"
        text += f"<t>{message['role']}\n{content}</t>\n"
    return text + ("<t>assistant\n" if asks else "")


def weight_of(message: dict) -> Any:
    return next((message[key] for key in ("weight", "train") if message.get(key) is not None), 1)


def reference(row: dict, thinks: bool) -> list[tuple[str, str]] | None:
    """The pairs of a conversation, or None if it has to be refused."""
    messages, tools = row["messages"], row.get("tools") or []
    wanted = [i for i, m in enumerate(messages) if m["role"] == "assistant" and weight_of(m) == 1]
    for number, message in enumerate(messages):
        thought = message.get("reasoning_content")
        lost = not thinks and (message.get("tool_calls") or (thought and number in wanted))
        if lost or message.get("name") or weight_of(message) not in (0, 1):
            return None
    if tools and not thinks:
        return None
    pairs = []
    for number in wanted:
        prompt = rendered(messages[:number], tools, thinks, asks=True)
        whole = rendered(messages[: number + 1], tools, thinks)
        pairs.append((prompt, whole.removeprefix(prompt).removesuffix("\n")))
    return pairs


@st.composite
def conversation(draw) -> dict:
    messages: list[dict] = [{"role": "system", "content": draw(WORD)}] if draw(st.booleans()) else []
    tools = [{"type": "function", "function": {"name": "f"}}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(WORD)})
        if draw(st.integers(0, 9)) == 0:
            messages[-1]["name"] = draw(st.sampled_from([None, "Bo"]))
        if draw(st.integers(0, 3)) == 0:
            call = {"name": "f", "arguments": {draw(WORD): draw(WORD)}}
            messages.append(draw(answer()) | {"content": draw(st.sampled_from([None, "", "so"]))})
            messages[-1]["tool_calls"] = [{"type": "function", "function": call}]
            messages.append({"role": "tool", "content": draw(WORD)})
        messages.append(draw(answer()))
    row: dict = {"messages": messages}
    if tools and draw(st.booleans()):
        row["tools"] = draw(st.sampled_from([tools, [], None]))
    return row


@st.composite
def answer(draw) -> dict:
    message: dict = {"role": "assistant", "content": draw(WORD)}
    kind = draw(st.integers(0, 5))
    if kind == 0:
        message["content"] = f"<think>{draw(WORD)}</think>{draw(WORD)}"
    elif kind == 1:
        message["reasoning_content"] = draw(WORD | BLANK)
        if message["reasoning_content"] and not message["reasoning_content"].strip():
            message["reasoning_content"] = None
    if draw(st.integers(0, 2)) == 0:
        key = draw(st.sampled_from(["weight", "train"]))
        message[key] = draw(st.sampled_from([0, 1, True, False, None, 0.5]))
    return message


@FIFTY
@given(st.lists(conversation(), min_size=1, max_size=7), st.booleans())
def test_messages(tmp_path, make_tiny, rows, thinks):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [reference(row, thinks) for row in rows]
    pairs = Counter(pair for row in expected if row for pair in row)
    tokenizer = make_tiny((*SPECIAL, "<tool>"), TOOLS if thinks else PLAIN)
    assert trained(tokenizer, path, DataKnobs()) == (pairs, sum(row is None for row in expected))


# Columns

LAYOUTS = [
    ({"instruction": "prompt", "output": "answer"}, ["input", "context", "passage"]),
    ({"question": "prompt", "answer": "answer"}, ["context", "passage", "background"]),
    ({"prompt": "prompt", "response": "answer"}, ["context", "document"]),
]
PART = {"instruction": "instruction", "question": "prompt", "prompt": "prompt"}


@st.composite
def table(draw) -> tuple[list[dict], DataKnobs, Counter]:
    """Rows with columns that some of them lack, under the field's names or the user's, and what they train."""
    names, optional = draw(st.sampled_from(LAYOUTS))
    (asked, said), given_by = names, draw(st.sampled_from(optional))
    ruled_by = draw(st.sampled_from(["system", "system_prompt"]))
    fields: dict[str, str | None] = {}
    if draw(st.booleans()):  # under names that say nothing, beside others that would
        fields = {PART[asked]: "c1", "completion": "c2", "input": "c3", "system": "c4"}
    called = {asked: "c1", said: "c2", given_by: "c3", ruled_by: "c4"} if fields else {}
    rows, pairs, used = [], Counter(), set()
    for _ in range(draw(st.integers(1, 9))):
        row = {called.get(asked, asked): (prompt := draw(WORD)), called.get(said, said): (answer := draw(WORD))}
        more: dict[str, str | None] = {}
        for name in (given_by, ruled_by):
            if draw(st.booleans()):
                more[name] = row[called.get(name, name)] = draw(WORD | BLANK)
                if (more[name] or "").strip():  # a column without a text is none
                    used.add(called.get(name, name))
        if draw(st.integers(0, 3)) == 0:
            row[draw(st.sampled_from(["id", "url", *([given_by, "source"] if fields else [])]))] = draw(WORD)
        given_text, rules = (more.get(name) or "" for name in (given_by, ruled_by))
        prompt += f"\n\n{given_text}" if given_text.strip() else ""
        text = f"<t>system\n{rules}</t>\n" if rules.strip() else ""
        pairs[(f"{text}<t>user\n{prompt}</t>\n<t>assistant\n", f"{answer}</t>")] += 1
        keys = draw(st.permutations(list(row)))
        rows.append({key: row[key] for key in keys})
    fields = {part: column if column in {"c1", "c2", *used} else None for part, column in fields.items()}
    return rows, DataKnobs(fields=fields or None), pairs


@FIFTY
@given(table())
def test_columns(tmp_path, make_tiny, drawn):
    rows, knobs, pairs = drawn
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trained(make_tiny(SPECIAL, PLAIN), path, knobs) == (pairs, 0)
