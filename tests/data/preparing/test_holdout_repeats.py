"""Contents that repeat: none of them takes more of the rows than are to be held out."""

from __future__ import annotations

import numpy as np
import pytest

from microplane.data.preparing.holdout import RowClasses, split_off, that_fit


def rows_of(counts, seed=0):
    """Hashes of as many contents, each in so many rows, in any order."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**63, len(counts), np.uint64)
    return rng.permutation(np.repeat(hashes, counts))


@pytest.mark.parametrize("seed", range(20))
def test_a_content_of_most_rows_is_trained_on_wherever_its_hash_stands(seed):
    hashes = rows_of([600, *[1] * 300, *[4] * 25], seed)
    held = split_off(hashes, 0.05, 1000)
    assert held.sum() == 50
    values, counts = np.unique(hashes, return_counts=True)
    assert not np.isin(values[counts == 600], hashes[held]).any()


@pytest.mark.parametrize("counts", [[3, 3], [600, 400], [7, 7, 2, 9], [5, 1]])
def test_where_nothing_fits_the_content_of_the_fewest_rows_is_held_out(counts):
    hashes = rows_of(counts)
    held = split_off(hashes, 0.01, 1000)
    assert held.sum() == min(counts)


def test_rows_that_differ_are_chosen_by_their_hashes_alone():
    hashes = rows_of([1] * 200)
    assert set(hashes[split_off(hashes, 0.1, 1000)]) == set(np.sort(hashes)[:20])


@pytest.mark.parametrize(
    ("counts", "room", "wanted"),
    [
        ([1, 1, 1], 2, [True, True, False]),
        ([5, 1, 1], 2, [False, True, True]),
        ([1, 5, 1, 1], 2, [True, False, True, False]),
        ([2, 2], 4, [True, False]),  # never all
        ([2, 1, 2], 0, [False, True, False]),  # never none
    ],
)
def test_what_fits(counts, room, wanted):
    assert that_fit(np.array(counts), room).tolist() == wanted


def test_of_a_class_one_content_that_repeats_does_not_fill_the_held_out_side():
    """Classes too: 600 of 1,000 rows were held out, for one content of a class was the first."""
    chance = np.random.default_rng(0)
    hashes = np.concatenate([np.full(600, 1), chance.integers(100, 1_000_000, 400)]).astype(np.uint64)
    classes = RowClasses()
    for row in range(1_000):
        classes.add(("a" if row < 700 else "b",))
    held = split_off(hashes, 0.1, 200, classes)
    assert 60 <= held.sum() <= 140
    assert not held[:600].any()
    assert held[700:].any()
