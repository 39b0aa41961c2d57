"""Data that cannot be trained on."""

from __future__ import annotations

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microplane.data.reading import lines
from tests.bad_input.kit import ROWS, Case, both, evaluate, folder, jsonl, sets, train, write

GOOD = jsonl(ROWS)
CHAT = [{"messages": [{"role": "user", "content": f"a{n}"}, {"role": "assistant", "content": "b"}]} for n in range(4)]


def file(name: str, content: str | bytes, *says: str, kind: str, knobs: tuple[str, ...] = ()) -> Case:
    """A run on a file of this name and content."""
    return Case(kind, train(*sets(*knobs), data=name), says, write(name, content))


def row(kind: str, bad: object, *says: str) -> Case:
    """One bad row behind 24 good ones."""
    content = GOOD.encode() + (bad if isinstance(bad, bytes) else json.dumps(bad).encode()) + b"\n"
    return file("a.jsonl", content, "1 of 25 rows", "a.jsonl:25", *says, kind=kind)


def chat(kind: str, *roles: str, says: tuple[str, ...]) -> Case:
    bad = {"messages": [{"role": role, "content": "x"} for role in roles]}
    return file("a.jsonl", jsonl([*CHAT, bad]), "a.jsonl:5", *says, kind=kind)


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


CASES = [
    Case("missing file", train(data="rowz.jsonl"), ("no file rowz.jsonl", "'rows.jsonl'")),
    Case("no data at all", ["train", "model"], ("data.train is not set", "microplane train MODEL DATA")),
    file("a.jsonl", "", "a.jsonl is empty", kind="empty file"),
    file("a.jsonl", "\n \n\n", "a.jsonl holds no rows", kind="blank lines only"),
    file("a.txt", GOOD, "a.txt", "'.txt'", ".jsonl", ".parquet", kind="unknown ending"),
    file("rows", GOOD, "rows", "no ending", ".jsonl", kind="no ending"),
    file("a.jsonl", bytes(range(256)), "a.jsonl is a binary file", kind="binary file"),
    file("a.jsonl", parquet(), "a.jsonl is a Parquet file", "ending", kind="Parquet named jsonl"),
    file("a.jsonl", GOOD.encode("utf-16"), "a.jsonl is UTF-16", "UTF-8", kind="UTF-16"),
    row("broken JSON", b'{"prompt": "a", "completion": ', "column 30", "one whole JSON object"),
    row("a number for text", {"prompt": "a", "completion": 3}, "key 'completion'", "the number 3", "expected text"),
    row("missing key", {"prompt": "a"}, "key 'completion' is missing"),
    row("null", {"prompt": None, "completion": "a"}, "key 'prompt' is null", "expected text"),
    row("empty answer", {"prompt": "a", "completion": " "}, "key 'completion' is the text ' '", "expected the answer"),
    row("invalid UTF-8", b'{"prompt": "\xff", "completion": "a"}', "byte 13 of the line", "0xff", "UTF-8"),
    row("half a character", b'{"prompt": "\\ud800", "completion": "a"}', "key 'prompt'", r"\ud800"),
    row("a list for a row", [1, 2], "a list [1, 2]", "expected an object"),
    row("another format in one row", {"instruction": "a", "output": "b"}, "'prompt' is missing", "'instruction'"),
    file("a.jsonl", jsonl([{"foo": "a", "complete": "b"}]), "'foo'", "'completion'", "messages", kind="unknown format"),
    file(
        "a.jsonl",
        jsonl([{"prompt": "a", "completion": "b", "response": "c"}]),
        "prompt -> completion",
        "prompt -> response",
        "rename",
        kind="two readings",
    ),
    Case(
        "a format that does not fit",
        train(*sets("data.format=messages")),
        ("'prompt'", "as messages", "{role, content}"),
    ),
    Case(
        "a folder without train",
        train(data="d"),
        ("folder d has no train file", "x.jsonl", "train.jsonl"),
        write("d/x.jsonl", GOOD),
    ),
    Case("an empty folder", train(data="d"), ("folder d has no train file", "no file"), folder("d")),
    Case(
        "two train files",
        train(data="d"),
        ("train.csv", "train.jsonl", "could all be the train file"),
        both(write("d/train.jsonl", GOOD), write("d/train.csv", "prompt,completion\na,b\n")),
    ),
    file("a.jsonl", jsonl(ROWS[:1]), "1 row", "at least 2", kind="a single row"),
    file("a.jsonl", jsonl(ROWS[:1] * 5), "5 rows that are all equal", kind="all rows equal"),
    file(
        "a.jsonl",
        jsonl([{**r, "completion": ""} for r in ROWS]),
        "24 of 24 rows",
        "24 x empty answer",
        kind="all answers empty",
    ),
    file(
        "a.jsonl",
        jsonl([{**r, "completion": ""} for r in ROWS]),
        "24 of 24 rows",
        "empty answer",
        kind="no row left after skipping",
        knobs=("data.skip_bad_rows=true",),
    ),
    chat("no assistant message", "user", says=("'messages' holds user", "at least one assistant")),
    chat("wrong order of roles", "assistant", "user", says=("messages[0]", "assistant", "expected the user")),
    chat("an unknown role", "narrator", "assistant", says=("messages[0].role", "'narrator'", "system, user")),
    file("a.jsonl", jsonl([*CHAT, {"messages": "hi"}]), "a.jsonl:5", "'hi'", "a list", kind="messages that are text"),
    file(
        "a.csv",
        "prompt,completion\na,b\nc\nd,e,f\n",
        "a.csv:3",
        "1 cells",
        "a.csv:4",
        "3 cells",
        "expected 2",
        kind="ragged CSV",
    ),
    file("a.csv", "hello,world\na,b\nc,d\n", "'hello'", "must name its columns", kind="CSV without a header"),
    file("a.csv", "prompt,prompt\na,b\n", "'prompt' twice", kind="CSV with a column twice"),
    file("a.parquet", parquet()[:400], "a.parquet is no readable Parquet file", kind="truncated Parquet"),
    file("a.jsonl.gz", gzip.compress(GOOD.encode())[:-20], "a.jsonl.gz", "damaged or cut off", kind="truncated gzip"),
    file("a.jsonl.gz", GOOD, "a.jsonl.gz", "gzip", kind="gz that is none"),
    file("a.json", '{"a": 1}', "a.json", "['a']", "a list of objects", kind="JSON without a list"),
    file("a.json", '[{"a": 1},', "a.json is broken JSON", "line 1, column 11", kind="broken JSON file"),
    Case("missing validation file", train(*sets("data.validation=v.jsonl")), ("no file v.jsonl",)),
    Case("empty test file", train(*sets("data.test=t.jsonl")), ("t.jsonl is empty",), write("t.jsonl", "")),
    Case(
        "a test file of unknown format",
        train(*sets("data.test=t.jsonl")),
        ("t.jsonl", "'foo'"),
        write("t.jsonl", '{"foo": 1}\n'),
    ),
    Case("missing file for eval", evaluate(data="rowz.jsonl"), ("no file rowz.jsonl", "'rows.jsonl'")),
    Case(
        "bad rows for eval",
        evaluate(data="a.jsonl"),
        ("1 of 25 rows", "a.jsonl:25", "the number 3"),
        write("a.jsonl", GOOD + '{"prompt": "a", "completion": 3}\n'),
    ),
    Case(
        "a file of bad rows to look at",
        ["data", "a.jsonl"],
        ("30 of 30 rows", "a.jsonl:1", "and 10 more", "30 x broken JSON"),
        write("a.jsonl", "{\n" * 30),
    ),
    Case("a file name that is not UTF-8", train(data="r\udcff.jsonl"), ("data.train", "UTF-8")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_data(microplane, case):
    microplane.check(case)


def test_a_line_that_is_far_too_long(microplane, here, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 2**20)
    with (here / "a.jsonl").open("w") as file:
        file.write(GOOD + '{"prompt": "')
        for _ in range(24):
            file.write("x" * 2**17)
        file.write('", "completion": "a"}\n')
    told = microplane.refuses(*train(data="a.jsonl"))
    assert "a.jsonl:25: the line holds 3 MB, at most 1 MB are read" in told.error


def test_every_bad_row_is_told_at_once(microplane, here):
    bad = [{"prompt": "a"}, {"prompt": "a", "completion": 3}, {"prompt": "a", "completion": ""}]
    (here / "a.jsonl").write_text(jsonl([*ROWS, *bad]))
    told = microplane.refuses(*train(data="a.jsonl"))
    assert all(f"a.jsonl:{line}:" in told.error for line in (25, 26, 27))
    assert "3 of 27 rows" in told.error
    assert "1 x missing key, 1 x not text, 1 x empty answer" in told.error


def test_skipping_is_counted_and_said(microplane, here):
    (here / "a.jsonl").write_text(GOOD + "{\n")
    code, out, err = microplane.run(*train("--skip-bad-rows", data="a.jsonl"))
    assert code == 0, err
    assert "broken JSON" in out


def test_a_quote_that_is_left_open(microplane, here):
    good = "".join(f"a{number},b{number}\n" for number in range(24))
    (here / "a.csv").write_text(f'prompt,completion\n{good}x,"y\n{good}')
    assert "a.csv:26" in microplane.refuses(*train(data="a.csv")).error
