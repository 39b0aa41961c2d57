"""Which rows are kept from training to validate on, decided by their content alone."""

from __future__ import annotations

import numpy as np

from microplane.errors import DataError


def split_off(hashes: np.ndarray, share: float, most: int) -> np.ndarray:
    """Which rows to validate on, (rows,) bool: those with the smallest hashes.

    Equal rows stay together, and the order of the rows does not matter. At least one row on either side.

    Raises:
        DataError: if there are fewer than two different rows.
    """
    different, counts = np.unique(hashes, return_counts=True)
    if len(different) < 2:
        has = "1 row" if len(hashes) == 1 else f"{len(hashes):,} rows that are all equal"
        raise DataError(f"the training data has {has}; at least 2 different ones are needed to train and to validate")
    target = min(round(share * len(hashes)), most)
    groups = int(np.searchsorted(np.cumsum(counts), target, side="right"))
    groups = min(max(1, groups), len(different) - 1)
    return np.isin(hashes, different[:groups])
