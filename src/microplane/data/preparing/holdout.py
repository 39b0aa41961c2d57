"""Which rows are kept from training to validate on, decided by their content alone."""

from __future__ import annotations

import numpy as np

from microplane.errors import DataError


def split_off(hashes: np.ndarray, share: float, most: int) -> np.ndarray:
    """Which rows to validate on, (rows,) bool: those with the smallest hashes.

    Equal rows stay together, and the order of the rows does not matter. At least one row on either side. A content that
    stands in more rows than there is room for is trained on.

    Raises:
        DataError: if there are fewer than two different rows.
    """
    different, counts = np.unique(hashes, return_counts=True)
    if len(different) < 2:
        has = "1 row" if len(hashes) == 1 else f"{len(hashes):,} rows that are all equal"
        raise DataError(f"the training data has {has}; at least 2 different ones are needed to train and to validate")
    target = min(round(share * len(hashes)), most)
    return np.isin(hashes, different[that_fit(counts, target)])


def that_fit(counts: np.ndarray, room: int) -> np.ndarray:
    """Which of some contents are chosen, (contents,) bool: one after the other, those that there is room for.
    At least one, then the first of the fewest rows; and not all.

    Args:
        counts: rows of each content.
        room: rows in all.
    """
    chosen = np.cumsum(counts) <= room
    left = room - int(counts[chosen].sum())
    for number in range(int(chosen.sum()), len(counts)):
        if not left:
            break
        if counts[number] <= left:
            chosen[number] = True
            left -= int(counts[number])
    if not chosen.any():
        chosen[int(np.argmin(counts))] = True
    if chosen.all():
        chosen[-1] = False
    return chosen
