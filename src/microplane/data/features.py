"""What a frozen model makes of each row, computed once and read through a memory map.

Shapes: N rows, T tokens of all rows, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Features:
    """Vectors of rows (N, D), or states of their tokens (T, D) with the rows' ends (N,).

    Numbers are float32, or bfloat16 as int16, which numpy has no other name for.
    """

    def __init__(self, numbers: np.ndarray, ends: np.ndarray | None = None):
        self.numbers, self.ends = numbers, ends

    def of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of some rows, side by side."""
        if self.ends is None:
            return self.numbers[np.asarray(rows)]
        starts = [int(self.ends[row - 1]) if row else 0 for row in rows]
        return np.concatenate([self.numbers[start : self.ends[row]] for start, row in zip(starts, rows, strict=True)])
