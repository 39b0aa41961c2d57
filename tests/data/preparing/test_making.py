"""Rows that were found good are made tokens, or it is said why not."""

from pathlib import Path

import numpy as np
import pytest

from microplane.data.preparing.making import Making
from microplane.data.preparing.split import Split, good_rows
from microplane.data.reading.bad_rows import NoLabel, RowError
from microplane.errors import DataError


class Gone:
    """A format whose rows are no longer what they were."""

    keys = ()

    def __init__(self, error):
        self.error = error

    def example(self, values, where):
        raise self.error


@pytest.mark.parametrize("error", [RowError("not text", "it holds a number"), NoLabel()])
def test_a_row_that_changes_between_the_two_looks_is_told(error):
    making = Making(Split("train", [Path("rows.jsonl")], Gone(error)), None, 100, 100, None)
    with pytest.raises(DataError, match=r"rows\.jsonl:7 changed while it was read; run again"):
        making([("train", 0, 7, {"text": "a"})])


@pytest.mark.parametrize(
    ("keys", "kept"), [((), {"text", "note"}), (("text",), {"text"}), (("text", "more"), {"text"})]
)
def test_columns_that_are_of_no_use_go_no_further(tmp_path, keys, kept):
    """Of a format that does not say which those are none."""
    file, form = tmp_path / "rows.jsonl", Gone(None)
    file.write_text('{"text": "a", "note": "b"}\n')
    form.keys = keys
    split = Split("train", [file], form)
    assert [set(values) for _, _, values in good_rows(split, np.array([[0, 1]]))] == [kept]
