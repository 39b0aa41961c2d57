"""Rows side by side: how their positions are counted."""

from microplane.nn.rows import Rows


def test_a_token_that_is_not_counted_leaves_the_others_their_places():
    rows = Rows.of([[7, 1, 7, 7], [1], [1, 1, 7], [7, 7]])
    assert rows.positions_without(1).tolist() == [0, -1, 1, 2, -1, -1, -1, 0, 0, 1]
    assert rows.positions_without(9).tolist() == rows.positions.tolist()


def test_positions_before_a_row_are_counted_though_they_are_no_tokens():
    rows = Rows.of([[0, 5], [6, 0, 7]]).with_prefix_positions(2)
    assert rows.positions_without(0).tolist() == [0, 1, -1, 2, 0, 1, 2, -1, 3]
