"""The socket between the embeddings and the first block, where prompt tuning puts vectors before each row.

Shapes: T tokens of all rows, side by side, B rows, P vectors before each, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from microplane.nn.rows import Rows


class PromptSocket(nn.Module):
    """The empty socket: rows stay as they are.

    A subclass may lengthen them. The model then computes the longer rows, in its cache and for cross-attention too, and
    returns the states of the tokens alone (`strip_prompt`), so labels and pooling do not change.
    """

    length = 0  # P, the number of vectors

    def forward(self, x: Tensor, rows: Rows, starts: Sequence[int] | None = None) -> tuple[Tensor, Rows]:
        """(T, D) -> (T + B P, D), and the rows with the positions of the vectors.

        Args:
            starts: how many tokens of each row a cache holds; the vectors of such a row are in the cache too.
        """
        return x, rows

    def strip_prompt(self, x: Tensor, longer: Rows, rows: Rows) -> Tensor:
        """Only the states of the tokens: (T + B P, D) -> (T, D). `longer` are the rows that calling it gave."""
        if longer is rows:
            return x
        return torch.cat([row[-n:] for row, n in zip(torch.split(x, list(longer.lengths)), rows.lengths, strict=True)])
