"""Last-n: the highest n blocks, the last norm and the head train; what lies below stays as it is.

The lower layers of a pretrained model hold what is common to many tasks (arXiv 1411.1792), and cost most of the time.
Of an encoder-decoder these are blocks of the decoder, or of the encoder where a task head reads that alone. A head that
is tied to the embedding stays as it is. What lies below is computed once (docs/methods/last-n.md).
"""

from __future__ import annotations

from typing import ClassVar, cast

from pydantic import Field
from torch import nn

from microplane.errors import ConfigError
from microplane.methods.selecting import NEEDS_BLOCK_ORDER, Selecting
from microplane.models.contract import Model, last_stack


class LastN(Selecting):
    name: ClassVar[str] = "last-n"
    summary: ClassVar[str] = "the highest n blocks and the head train; the rest is computed once"
    default_lr: ClassVar[float] = 5e-4
    needs_own_model: ClassVar[str | None] = NEEDS_BLOCK_ORDER
    counts_blocks: ClassVar[bool] = True

    n: int = Field(2, ge=1, description="how many of the highest blocks train")

    def chosen(self, model: nn.Module) -> list[nn.Module]:
        stack = last_stack(model)
        blocks = list(cast(nn.ModuleList, stack.layers))
        if self.n > len(blocks):
            over = f"method.n = {self.n} is more than the number of blocks here, {len(blocks)}"
            raise ConfigError(f"{over}. Set it to {len(blocks)} or less")
        above = (getattr(stack, "norm", None), getattr(model, "head", None))
        return blocks[len(blocks) - self.n :] + [part for part in above if part is not None]

    def frozen_below(self, model: nn.Module) -> int:
        model = cast(Model, model)
        if model.KIND == "encoder-decoder":
            return 0
        return model.layers_below(model.blocks - self.n)
