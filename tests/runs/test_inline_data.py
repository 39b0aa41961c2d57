"""Rows of a program and of standard input: what they are taken for, and what JSON can hold of a row."""

from __future__ import annotations

import datetime
from decimal import Decimal
from io import BytesIO
from types import SimpleNamespace

import pytest

from microplane.config.knobs import RunKnobs
from microplane.errors import ConfigError, DataError
from microplane.runs.inline_data import InlineData, as_json, configuration


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"text": "a"}\n', "stdin.jsonl"),
        (b'\n  {"text": "a"}\n', "stdin.jsonl"),
        (b'\xef\xbb\xbf[{"text": "a"}]', "stdin.json"),
        (b"text,label\na,b\n", "stdin.csv"),
    ],
)
def test_standard_input_is_what_it_begins_with(monkeypatch, content, name):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(content)))
    found = InlineData.of_stdin()
    assert (found.name, found.content) == (name, content)


def test_nothing_on_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(b" \n")))
    with pytest.raises(DataError, match="standard input is empty"):
        InlineData.of_stdin()


def test_of_a_row_that_is_written_again_numbers_and_places_stay():
    day = datetime.date(2026, 1, 2)
    row = {"a": Decimal("0.5"), "b": [1, day, "x"], "c": day, "d": {"e": None, "f": b"x"}}
    assert as_json(row) == {"a": 0.5, "b": [1, None, "x"], "d": {"e": None}}


@pytest.mark.parametrize("more", [{"model": "m"}, {"data": "d"}, {"method": "lora"}, {"set": {}}], ids=str)
def test_a_whole_configuration_stands_alone(more):
    given = {"model": None, "data": None, "method": None, "set": None} | more
    with pytest.raises(ConfigError, match="knobs are the whole configuration: leave out"):
        configuration(**given, knobs=RunKnobs())
