"""Rows that are split off: the same share of each class, and no class missing on either side."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microplane.data.preparing.holdout import RowClasses, TooFewRowsError, split_off


def classes_of(rows: list[tuple[str, ...]]) -> RowClasses:
    classes = RowClasses()
    for row in rows:
        classes.add(row)
    return classes


def hashes_of(rows: list, seed: int = 0) -> np.ndarray:
    """Equal rows have equal hashes."""
    rng = random.Random(seed)
    made: dict = {}
    return np.array([made.setdefault(row, rng.getrandbits(64)) for row in rows], np.uint64)


def sides(rows: list[tuple[str, ...]], held: np.ndarray) -> tuple[Counter, Counter]:
    counts = Counter(), Counter()
    for row, out in zip(rows, held.tolist(), strict=True):
        counts[not out].update(row)
    return counts[1], counts[0]


def test_the_classes_of_some_rows_are_theirs():
    rows = [("a",), (), ("a", "b", "c"), ("c",), ("b", "c")]
    for kept in ([2], [1, 4], [0, 3], [], [0, 1, 2, 3, 4]):
        mask = np.isin(np.arange(5), kept)
        part, wanted = classes_of(rows).of(mask), classes_of([rows[row] for row in kept])
        assert list(part.sizes) == list(wanted.sizes)
        assert {name: count for name, count in part.counts().items() if count} == wanted.counts()


ROWS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), min_size=2, max_size=90).filter(
    lambda rows: len(set(rows)) > 1
)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.floats(0.02, 0.6), st.integers(1, 40), st.integers(0, 9), st.randoms())
def test_each_class_of_two_different_rows_stands_on_both_sides(rows, share, most, seed, rng):
    classes = [(str(name),) for _, name in rows]
    hashes = hashes_of(rows, seed)
    held = split_off(hashes, share, most, classes_of(classes))
    assert 0 < held.sum() < len(rows)
    assert set(hashes[held]).isdisjoint(hashes[~held])  # equal rows stay together
    different = {name: len({row for row in rows if row[1] == name}) for _, name in rows}
    if max(different.values()) > 1:
        train, validation = sides(classes, held)
        for name, count in different.items():
            assert train[str(name)]
            assert bool(validation[str(name)]) == (count > 1)
    order = list(range(len(rows)))
    rng.shuffle(order)
    assert (split_off(hashes[order], share, most, classes_of([classes[at] for at in order])) == held[order]).all()


@pytest.mark.parametrize(("share", "most"), [(0.1, 200), (0.25, 10_000), (0.1, 50)])
def test_the_share_of_each_class_is_that_of_all_rows(share, most):
    rows = [(number, "abcd"[min(3, number % 17)]) for number in range(3000)]
    classes = [(name,) for _, name in rows]
    held = split_off(hashes_of(rows), share, most, classes_of(classes))
    target = min(round(share * len(rows)), most)
    assert held.sum() == target
    train, validation = sides(classes, held)
    for name in "abcd":
        exact = (train[name] + validation[name]) * target / len(rows)
        assert abs(validation[name] - exact) <= 1


def test_rare_classes_are_on_both_sides_where_few_rows_are_held_out():
    rows = [(number, "common") for number in range(500)] + [(number, f"rare {number % 9}") for number in range(18)]
    held = split_off(hashes_of(rows), 0.1, 5, classes_of([(name,) for _, name in rows]))
    train, validation = sides([(name,) for _, name in rows], held)
    assert all(train[f"rare {number}"] == validation[f"rare {number}"] == 1 for number in range(9))
    assert 1 <= validation["common"] <= 2


def test_rows_of_several_classes_and_of_none_are_shared_out_too():
    rng = random.Random(1)
    chances = {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.04, "e": 0.02}
    sets = [tuple(name for name, chance in chances.items() if rng.random() < chance) for _ in range(800)]
    held = split_off(hashes_of(list(range(800))), 0.1, 200, classes_of(sets))
    train, validation = sides(sets, held)
    for name in "abcde":
        assert abs(validation[name] / (train[name] + validation[name]) - 0.1) < 0.06
        assert validation[name]
    empty = [not row for row in sets]
    assert 0.05 < held[empty].sum() / sum(empty) < 0.15
    assert 60 < held.sum() < 100


def test_rows_without_classes_are_split_by_their_hashes_alone():
    hashes = hashes_of(list(range(200)))
    plain = split_off(hashes, 0.1, 200)
    assert (plain == split_off(hashes, 0.1, 200, classes_of([()] * 200))).all()
    assert set(hashes[plain].tolist()) == set(sorted(hashes.tolist())[:20])
    assert (plain == split_off(hashes, 0.1, 200, classes_of([("one",)] * 200))).all()
    assert (plain == split_off(hashes, 0.1, 200, classes_of([(1.5,)] * 200))).all()  # values of a regression


def test_a_share_is_rounded_to_whole_rows():
    assert [split_off(hashes_of(list(range(25))), share, 200).sum() for share in (0.13, 0.15, 0.17)] == [3, 4, 4]


def test_where_every_row_is_a_class_of_its_own_rows_are_held_out_all_the_same():
    names = [(f"c{number}",) for number in range(40)]
    assert split_off(hashes_of(names), 0.1, 200, classes_of(names)).sum() == 4
    with pytest.raises(TooFewRowsError, match="3 rows that are all equal"):
        split_off(hashes_of([1, 1, 1]), 0.1, 9, classes_of([("a",)] * 3))


def test_words_without_a_class_are_none():
    classes = classes_of([("a", None, "b", "a"), (None,), ("b",)])
    assert classes.counts() == {"a": 2, "b": 2}
    assert classes.of(np.array([False, True, True])).counts() == {"a": 0, "b": 1}
