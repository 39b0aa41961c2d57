"""Head-only, also called linear probing or feature extraction: the model stays as it is, and a head on it trains.

A task head, or else the head for words, where it is a matrix of its own: tied to the embedding it could not change
without changing what every block reads. What lies below computes the same in every step (docs/methods/head-only.md).
"""

from __future__ import annotations

from typing import ClassVar, cast

from torch import nn

from microplane.errors import ConfigError
from microplane.methods.selecting import NEEDS_BLOCK_ORDER, Selecting
from microplane.models.contract import Model


class HeadOnly(Selecting):
    name: ClassVar[str] = "head-only"
    summary: ClassVar[str] = "the model stays as it is and only a head on it trains; seconds, for few rows"
    default_lr: ClassVar[float] = 2e-3
    trains_matrices: ClassVar[bool] = False
    needs_own_model: ClassVar[str | None] = NEEDS_BLOCK_ORDER

    def chosen(self, model: nn.Module) -> list[nn.Module]:
        if getattr(model, "task_head", None) is not None:
            return []  # it trains beside any method
        if (head := getattr(model, "head", None)) is not None:
            return [head]
        raise ConfigError(
            f"method head-only: this {cast(Model, model).config.architecture} has no head of its own to train: it has "
            "no task head, and its head for words is its embedding, which all blocks read. Train labels with "
            "data.task=classification, or choose another method, such as last-n or lora"
        )

    @classmethod
    def works_without_own_code(cls, has_labels: bool) -> bool:
        """A task head lies above all blocks, whatever their order."""
        return has_labels

    def refusal(self, model: nn.Module) -> str | None:
        labels = getattr(model, "task_head", None) is not None
        return None if self.works_without_own_code(labels) else self.needs_own_model

    def frozen_below(self, model: nn.Module) -> int:
        model = cast(Model, model)
        return 0 if model.KIND == "encoder-decoder" else model.config.num_layers
