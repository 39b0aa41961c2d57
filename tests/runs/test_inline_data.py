"""Rows of a program and of standard input: what they are taken for, and what JSON can hold of a row."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from io import BytesIO
from types import SimpleNamespace

import numpy as np
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


def test_rows_of_a_table_are_those_of_python():
    """As NumPy and pandas hand them out, wherever they stand in a row."""
    table = {"text": np.str_("a"), "label": np.int64(1), "score": np.float32(0.5), "kept": np.bool_(True)}
    table |= {"tags": np.array([1, 2]), "words": np.array(["a", "b"], dtype=object), "in": [{"x": np.uint8(3)}]}
    plain = {"text": "a", "label": 1, "score": 0.5, "kept": True, "tags": [1, 2], "words": ["a", "b"], "in": [{"x": 3}]}
    assert json.loads(InlineData.of_rows([table]).content) == plain
    with pytest.raises(DataError, match="row 2 cannot be written as JSON: a date is neither text nor a number"):
        InlineData.of_rows([plain, {"text": "a", "day": datetime.date(2026, 1, 2)}])


@pytest.mark.parametrize("rows", [[], (), iter([])])
def test_no_rows_are_no_empty_file_of_ours(rows):
    with pytest.raises(DataError, match="there are no rows"):
        InlineData.of_rows(rows)


def test_of_a_row_that_is_written_again_numbers_and_places_stay():
    day = datetime.date(2026, 1, 2)
    row = {"a": Decimal("0.5"), "b": [1, day, "x"], "c": day, "d": {"e": None, "f": b"x"}}
    assert as_json(row) == {"a": 0.5, "b": [1, None, "x"], "d": {"e": None}}


@pytest.mark.parametrize("more", [{"model": "m"}, {"data": "d"}, {"method": "lora"}, {"set": {}}], ids=str)
def test_a_whole_configuration_stands_alone(more):
    given = {"model": None, "data": None, "method": None, "set": None} | more
    with pytest.raises(ConfigError, match="knobs are the whole configuration: leave out"):
        configuration(**given, knobs=RunKnobs())
