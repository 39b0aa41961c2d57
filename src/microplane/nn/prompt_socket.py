"""What stands between the embeddings and the first block: nothing, or vectors that a method puts before each row.

Shapes: T tokens of all rows, side by side, B rows, P vectors before each, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from microplane.nn.rows import Rows


class PromptSocket(nn.Module):
    """This one leaves rows as they are.

    Another may lengthen them; a model then computes the longer rows, which are what its cache counts and what
    cross-attention sees, and gives out the states of the tokens alone: no label moves, and no pooling sees a vector.
    """

    length = 0  # P

    def forward(self, x: Tensor, rows: Rows, starts: Sequence[int] | None = None) -> tuple[Tensor, Rows]:
        """(T, D) -> (T + B P, D), and the rows as they are then.

        Args:
            starts: how many tokens of each row a cache holds; rows that go on have had what stands before them.
        """
        return x, rows

    def strip_prompt(self, x: Tensor, longer: Rows, rows: Rows) -> Tensor:
        """The states of the tokens themselves: (T + B P, D) -> (T, D)."""
        if longer is rows:
            return x
        return torch.cat([row[-n:] for row, n in zip(torch.split(x, list(longer.lengths)), rows.lengths, strict=True)])
