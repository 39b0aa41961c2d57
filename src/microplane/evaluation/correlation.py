"""How far two lists of numbers rise and fall together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def pearson(x: Values, y: Values) -> float:
    """Pearson's correlation of two lists of one length, in -1..1.

    Returns:
        0 where there is none: one list never changes, or holds a value that is not finite, or both are too short.
    """
    return float(np.corrcoef(x, y)[0, 1]) if _changes(x) and _changes(y) else 0.0


def spearman(x: Values, y: Values) -> float:
    """Spearman's correlation: Pearson's of the ranks, where equal values share theirs; 0 in the same cases."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1]) if _changes(x) and _changes(y) else 0.0


def _changes(values: Values) -> bool:
    """By comparing values: the deviation of ten times 0.1 from their mean is not 0, for 0.1 is rounded."""
    return len(values) > 1 and bool(np.isfinite(values).all() and values.min() < values.max())


def _ranks(values: Values) -> Values:
    """The place of each value in ascending order, from 1; equal values get the mean of their places."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Values = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return ranks
