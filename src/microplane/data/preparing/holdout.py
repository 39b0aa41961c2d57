"""Which rows are kept from training to validate on, decided by their content alone."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from microplane.errors import DataError


class TooFewRowsError(DataError):
    """Nothing can be held out of the training rows."""


@dataclass
class RowClasses:
    """Which classes each row has: none, one, several, or one for each word."""

    numbers: dict[str, int] = field(default_factory=dict)  # by name, in the order in which they came
    flat: array[int] = field(default_factory=lambda: array("i"))  # of all rows end to end
    sizes: array[int] = field(default_factory=lambda: array("i"))  # of each row

    def add(self, labels: Iterable[str | float | None]) -> None:
        """One more row. Values of a regression, and words without a class, are none."""
        before = len(self.flat)
        self.flat.extend(self.numbers.setdefault(name, len(self.numbers)) for name in labels if isinstance(name, str))
        self.sizes.append(len(self.flat) - before)

    def of(self, rows: np.ndarray) -> RowClasses:
        """Those of the rows that a mask (rows,) bool chooses; the names stay all."""
        sizes = np.asarray(self.sizes)
        flat = np.asarray(self.flat)[np.repeat(rows, sizes)]
        return RowClasses(self.numbers, array("i", flat.tolist()), array("i", sizes[rows].tolist()))

    def counts(self) -> dict[str, int]:
        """How many rows (or words) have each class; 0 of those that only other rows have."""
        found = np.bincount(np.asarray(self.flat, np.int64), minlength=len(self.numbers)).tolist()
        return {name: found[number] for name, number in self.numbers.items()}


def split_off(hashes: np.ndarray, share: float, most: int, classes: RowClasses | None = None) -> np.ndarray:
    """Which rows to validate on, (rows,) bool: those with the smallest hashes, of each class the same share.

    Equal rows stay together, and the order of the rows does not matter. At least one row on either side; and of each
    class that two different rows have, as far as rows of several classes allow it. A content that stands in more rows
    than there is room for is trained on.

    Args:
        classes: of rows with classes, which each of them has.

    Raises:
        TooFewRowsError: if there are fewer than two different rows.
    """
    different, groups, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    if len(different) < 2:
        has = "1 row" if len(hashes) == 1 else f"{len(hashes):,} rows that are all equal"
        need = "at least 2 different ones are needed to train and to validate"
        raise TooFewRowsError(f"the training data has {has}; {need}")
    target = min(round(share * len(hashes)), most)
    if classes is not None and classes.numbers:
        held = _stratified(_classes_of_groups(groups, classes), counts, target / len(hashes))
        if held.any():  # else no class has two different rows
            return held[groups]
    return that_fit(counts, target)[groups]


def _classes_of_groups(groups: np.ndarray, classes: RowClasses) -> list[np.ndarray]:
    """Of each class, the numbers of the groups of equal rows that have it, ascending; last, of those without any."""
    sizes = np.asarray(classes.sizes)
    pairs = np.stack([np.asarray(classes.flat, np.int64), np.repeat(groups, sizes)])
    without = np.unique(groups[sizes == 0])
    number, group = np.unique(pairs, axis=1)
    bounds = np.searchsorted(number, np.arange(1, len(classes.numbers)))
    return [*np.split(group, bounds), without]


def _stratified(members: list[np.ndarray], counts: np.ndarray, share: float) -> np.ndarray:
    """Which groups of equal rows are held out, (groups,) bool: the rarest class chooses first, among the groups that no
    rarer one has placed (Sechidis et al. 2011, "On the stratification of multi-label data"). What rounding takes from
    one class it gives to the next.

    Args:
        members: of each class, its groups.
        counts: rows of each group.
    """
    held, placed = np.zeros(len(counts), bool), np.zeros(len(counts), bool)
    carry = 0.0
    for groups in sorted(members, key=lambda groups: (int(counts[groups].sum()), groups.tolist())):
        free = groups[~placed[groups]]
        wanted = share * int(counts[groups].sum()) + carry - int(counts[groups[held[groups]]].sum())
        in_training = len(free) < len(groups) - int(held[groups].sum())
        fit = _fitting(counts[free], round(wanted))
        if len(free) and not fit.any() and not held[groups].any() and len(groups) > 1:
            fit[int(np.argmin(counts[free]))] = True
        if fit.all() and not in_training:
            fit[-1:] = False
        chosen = free[fit]
        held[chosen], placed[free] = True, True
        carry = wanted - int(counts[chosen].sum())
    return held


def that_fit(counts: np.ndarray, room: int) -> np.ndarray:
    """Which of some contents are chosen, (contents,) bool: one after the other, those that there is room for.
    At least one, then the first of the fewest rows; and not all.

    Args:
        counts: rows of each content.
        room: rows in all.
    """
    chosen = _fitting(counts, room)
    if not chosen.any():
        chosen[int(np.argmin(counts))] = True
    if chosen.all():
        chosen[-1] = False
    return chosen


def _fitting(counts: np.ndarray, room: int) -> np.ndarray:
    """Of contents in their order those that there is room for, (contents,) bool."""
    chosen = np.cumsum(counts) <= room
    left = room - int(counts[chosen].sum())
    for number in range(int(chosen.sum()), len(counts)):
        if left <= 0:
            break
        if counts[number] <= left:
            chosen[number] = True
            left -= int(counts[number])
    return chosen
