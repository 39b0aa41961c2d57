"""Rows with the answers of other rows."""

from __future__ import annotations

from microplane.evaluation.nearness import Paired
from tests.contract.families import Parity
from tests.tiny import copy_task


def test_a_row_with_labels_has_its_own_text_and_the_others_label():
    rows = Parity(copy_task().rows)
    even, odd = (next(n for n in range(len(rows)) if rows.labels(n)[0] == label) for label in (0, 1))
    paired = Paired(rows, [even, odd, even], [odd, even, even])
    assert [paired.labels(row)[0] for row in range(3)] == [1, 0, 0]
    assert [paired[row][0].tolist() for row in range(3)] == [rows[n][0].tolist() for n in (even, odd, even)]
