"""Complaints of many rows in one error, and the lines that they are about."""

from __future__ import annotations

import gzip
import io

import pytest

from microplane.data.reading import lines
from microplane.data.reading.bad_rows import LISTED, Problem, Problems
from microplane.data.reading.lines import BOM, Lines, LongLineError, file_type, open_file
from microplane.errors import DataError


def problems(count: int) -> Problems:
    found = Problems()
    for number in range(count):
        found.add(f"rows.jsonl:{number}", Problem("no text" if number % 3 else "no label", f"complaint {number}"))
        found.notice(f"rows.jsonl:{number}", "odd")
    return found


@pytest.mark.parametrize(("count", "more"), [(LISTED, ""), (LISTED + 1, "  and 1 more"), (1_500, "  and 1,480 more")])
def test_the_first_are_listed_and_all_counted(count, more):
    found = problems(count)
    *listed, last = found.lines()
    assert len(found.first) == len(found.notices) == LISTED
    assert listed[LISTED:] == ([more] if more else [])
    missing = -(-count // 3)
    assert last == f"In all: {count - missing:,} x no text, {missing:,} x no label."


def test_one_complaint_needs_no_count_and_others_may_follow():
    assert problems(1).lines() == ["  rows.jsonl:0: complaint 0"]
    said = str(problems(2).error("rows.jsonl", 5))
    assert said.startswith("rows.jsonl: 2 of 5 rows cannot be used:\n")
    assert str(problems(2).error("rows.jsonl", 5, more=True)).startswith("rows.jsonl: at least 2 of 5 rows")


def test_lines_are_numbered_and_placed_also_behind_one_that_is_too_long(monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 8)
    read = Lines(io.BytesIO(BOM + b"four\n" + b"12345678901234567890\n" + BOM + b"end\n" + b"1234567\n"))
    assert next(read) == b"four\n"
    with pytest.raises(LongLineError):
        next(read)
    assert (read.number, read.start) == (2, 8)
    assert next(read) == BOM + b"end\n", "a mark of byte order stands at a file's beginning alone"
    assert (read.number, read.start) == (3, 29)
    assert next(read) == b"1234567\n", "just as long as may be"
    assert list(read) == []


def test_a_file_is_read_by_its_ending_whatever_its_case_and_compression(tmp_path):
    path = tmp_path / "Rows.JSONL.GZ"
    path.write_bytes(gzip.compress(b"{}\n"))
    assert file_type(path) == ".jsonl"
    with open_file(path) as file:
        assert file.read() == b"{}\n"
    assert file_type(tmp_path / "a.b.csv") == ".csv"
    for name in ("rows.parquet.gz", "rows.jsnl", "rows", "rows.gz"):
        with pytest.raises(DataError):
            file_type(tmp_path / name)
