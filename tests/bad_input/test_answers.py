"""Prompts and settings that nothing can be answered with, and places for answers that are taken."""

from __future__ import annotations

import io

import pytest

from tests.bad_input.kit import Case, evaluate, generate, sets


def setting(kind: str, *assignments: str, says: tuple[str, ...]) -> Case:
    return Case(kind, generate("hi", *sets(*assignments)), says)


CASES = [
    Case("no prompt", generate(), ("there is no prompt", "--interactive")),
    Case("blank lines for prompts", generate(), ("there is no prompt", "--interactive"), stdin="\n  \n"),
    Case("an empty prompt", generate(""), ("there is no prompt", "give some text")),
    Case("- among other prompts", generate("hi", "-"), ("- stands for the lines of standard input",), stdin="hi\n"),
    Case("- among other texts", ["embed", "model", "-", "hi"], ("- stands for the lines",), stdin="hi\n"),
    Case("a prompt longer than the context", generate("word " * 50), ("269 tokens", "context of 128", "Shorten")),
    Case(
        "more tokens than the context",
        generate("hi", tokens=200),
        ("context of 128", "Set max_new_tokens to 107 or less"),
    ),
    Case("a prompt and --interactive", generate("hi", "-i"), ("--interactive", "leave prompts and --json out")),
    Case("an unknown number format", ["generate", "model", "hi", "--dtype", "float8"], ("float8", "bfloat16")),
    setting("temperature below 0", "temperature=-1", says=("temperature = -1", "greater than or equal to 0")),
    setting("a temperature too close to 0", "temperature=1e-320", says=("temperature", "0, or at least 0.001")),
    setting("an infinite temperature", "temperature=.inf", says=("temperature = inf", "finite")),
    setting("top_p of 0", "top_p=0", says=("top_p = 0", "greater than 0")),
    setting("top_k below 0", "top_k=-1", says=("top_k = -1", "greater than or equal to 0")),
    setting("top_p without temperature", "top_p=0.5", says=("top_p = 0.5", "Set temperature above 0")),
    setting(
        "beams and temperature", "beams=2", "temperature=1", says=("beams = 2", "temperature = 1", "exclude each other")
    ),
    setting("no beam", "beams=0", says=("beams = 0", "greater than or equal to 1")),
    setting("far too many beams", "beams=100000", says=("beams = 100000", "256")),
    setting("an empty stop text", "stop=['']", says=("stop = ''", "end every answer")),
    setting("a stop text that is no list", "stop=x", says=("stop = 'x'", "a list")),
    setting("a penalty of 0", "repetition_penalty=0", says=("repetition_penalty = 0", "or equal to 0.001")),
    Case(
        "settings of a chat that exclude each other",
        generate("-i", *sets("beams=2", "temperature=1")),
        ("beams = 2", "exclude each other"),
        stdin="hi\n",
    ),
    Case("a prompt that is not UTF-8", generate("a\udcff"), ("the prompt", "not UTF-8")),
    Case("a system prompt that is not UTF-8", generate("a", "--system", "\udcff"), ("the prompt", "not UTF-8")),
    Case("answers into a folder", evaluate("--out", "model"), ("--out model is a folder",)),
    Case("answers below a file", evaluate("--out", "rows.jsonl/x"), ("--out rows.jsonl/x", "rows.jsonl is no folder")),
    Case("answers over the data", evaluate("--out", "rows.jsonl"), ("--out rows.jsonl", "overwrite the data")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_prompts(microplane, case):
    microplane.check(case)


def test_a_chat_goes_on_after_a_message_that_is_too_long(microplane, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 60 + "\nhi\n"))
    code, out, err = microplane.run(*generate("-i"))
    assert code == 0, err
    first, second = out.splitlines()[:2]
    assert first.startswith("error: ")
    assert "context of 128" in first
    assert second


@pytest.mark.parametrize("interactive", [True, False])
def test_standard_input_that_is_not_utf8(microplane, monkeypatch, interactive):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    if interactive:
        code, out, err = microplane.run(*generate("-i"))
        assert (code, err) == (0, "")
        assert "not UTF-8" in out
    else:
        assert "not UTF-8" in microplane.refuses(*generate()).error


@pytest.mark.parametrize("more", [["hi"], ["-i"]])
def test_in_a_short_context_the_default_writes_what_fits_and_says_so(microplane, monkeypatch, more):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    code, out, err = microplane.run("generate", "model", *more, "--dtype", "float32", *sets("stop=['@@@']"))
    assert code == 0, err
    assert "less room for an answer than max_new_tokens = 256: 107 tokens" in out + err
