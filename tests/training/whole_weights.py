"""`microplane train` of one of several processes; says how many whole weights were alive in each step.

Started once for each rank, as torchrun does:

    python -m tests.training.whole_weights train model rows.jsonl ...
"""

from __future__ import annotations

import gc
import sys

import torch
from torch import nn

from microplane.__main__ import program
from microplane.training import loop


def whole_weights() -> int:
    """Matrices that this process holds as a whole; what was gathered and let go of has no memory any more."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) is nn.Parameter and not one.is_meta]
    return sum(one.dim() > 1 and one.untyped_storage().nbytes() > 0 for one in found)


def main() -> None:
    torch.set_num_threads(1)
    make_step = loop.train_step

    def counted(*given):
        print("whole weights alive:", whole_weights(), file=sys.stderr, flush=True)
        return make_step(*given)

    loop.train_step = counted
    program()


if __name__ == "__main__":
    main()
