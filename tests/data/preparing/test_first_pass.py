"""Files of one run are read in one way, or it is said or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from microplane.config.knobs import DataKnobs
from microplane.data.preparing.first_pass import FirstPass, files_of, first_pass
from microplane.data.rendering.labelled import LabelFormat
from microplane.errors import DataError


def written(path: Path, *columns: str, **some: str) -> str:
    """Ten rows with these columns; `some` are there in every other one."""
    rows = [
        {column: f"{column} {number}" if column != "label" else number % 2 for column in columns}
        | (some if number % 2 else {})
        for number in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(train: str, test: str, labelled: bool = True) -> FirstPass:
    knobs = DataKnobs(train=train, test=test)
    how = (lambda rows, file, knobs: LabelFormat(rows, file, fields=knobs.fields),) if labelled else ()
    return first_pass(files_of(knobs), knobs, None, True, *how)


def formats(found: FirstPass) -> list[str]:
    return [str(found.splits[name].format) for name in ("train", "test")]


@pytest.mark.parametrize("more", ["title", "body", "summary"])
def test_columns_that_training_rows_do_not_have_are_no_texts_of_others(tmp_path, more):
    """Of several columns the first by its name would be the text, and another the second one."""
    found = read(written(tmp_path / "a.jsonl", "text", "label"), written(tmp_path / "b.jsonl", more, "text", "label"))
    assert formats(found) == [
        "classification (text -> label)",
        f"classification (text -> label; not used: {more})",
    ]


def test_pairs_are_pairs_in_all_files(tmp_path):
    pairs = written(tmp_path / "a.jsonl", "premise", "hypothesis", "label")
    more = written(tmp_path / "b.jsonl", "title", "premise", "hypothesis", "label")
    assert formats(read(pairs, more))[1].startswith("classification (premise + hypothesis -> label; not used: title")
    one = written(tmp_path / "c.jsonl", "premise", "label")
    other = written(tmp_path / "d.jsonl", "claim", "evidence", "label")
    with pytest.raises(
        DataError, match=r"c\.jsonl: the text is read from 'premise', and in a\.jsonl from 'premise' and"
    ):
        read(pairs, one)
    with pytest.raises(
        DataError, match=r"d\.jsonl: the text is read from 'claim' and 'evidence', and in c\.jsonl from"
    ):
        read(one, other)


def test_a_second_text_of_some_rows_may_be_in_no_row_of_another_file(tmp_path):
    some = written(tmp_path / "a.jsonl", "text", "label", text_pair="more")
    none = written(tmp_path / "b.jsonl", "text", "label")
    assert formats(read(some, none))[1] == "classification (text -> label)"


def test_rows_of_another_kind_or_with_another_part_are_told(tmp_path):
    asked = written(tmp_path / "a.jsonl", "question", "answer")
    text = written(tmp_path / "b.jsonl", "text")
    with_context = written(tmp_path / "c.jsonl", "question", "context", "answer")
    for train, test, told in (
        (asked, text, "b.jsonl: read as text (text), and the training rows as prompt/completion"),
        (text, asked, "a.jsonl: read as prompt/completion (question -> answer), and the training rows as text"),
        (asked, with_context, "c.jsonl: read with ['context'], and no training row has such a column"),
    ):
        [notice] = read(train, test, labelled=False).problems.notices
        assert notice.startswith(told)
    for train, test in ((with_context, asked), (asked, asked), (text, text)):
        assert not read(train, test, labelled=False).problems.notices
