"""What comes between attaching a method and training: the method chooses what it starts from, by training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
from torch import Tensor, nn

from microplane.config.knobs import TrainKnobs
from microplane.data.batch_plan import micro_batches
from microplane.data.store import Dataset
from microplane.device import put
from microplane.errors import ConfigError
from microplane.methods import Method
from microplane.models.contract import Model, device_of, hf_names, module_map_of
from microplane.objectives.base import AnyObjective
from microplane.objectives.collate import batch_of


def init_from_data(
    objective: AnyObjective,
    model: nn.Module,
    method: Method,
    train: Dataset,
    knobs: TrainKnobs,
    stored: Mapping[str, Tensor],
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Let `method` choose its start.

    Args:
        stored: the base's weights under Hugging Face's names, as they are on disk.
    """
    rows, names = method.init_rows, hf_names(model)
    if rows:
        say(f"choosing what to start from by {min(rows, len(train))} training rows")
    losses = sample_losses(objective, model, train, rows, knobs.seed, knobs.at_once)

    def weight(site: str) -> Tensor:
        if module_map_of(model) is not None:
            raise ConfigError(
                "method.start: this start needs the weights as they were before they were quantised, which are not at "
                "hand for a model that is loaded through transformers; choose zero, or a base that is not quantised"
            )
        return put(stored[names[f"{site}.weight"]], device_of(model))

    method.init_from_data(model, losses, weight)


def sample_losses(
    objective: AnyObjective, model: nn.Module, dataset: Dataset, rows: int, seed: int, micro_tokens: int
) -> list[Callable[[], Tensor]]:
    """Mean losses of `rows` rows drawn with `seed`, each of at most `micro_tokens` tokens, computed when called."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(dataset.trained_counts))[:rows]

    def loss(indices: Sequence[int]) -> Tensor:
        batch = batch_of(objective, model, dataset, indices)
        mean: Tensor = objective.loss(cast(Model, model), batch) / batch.count
        return mean

    return [partial(loss, indices) for indices in micro_batches(order, dataset.lengths, micro_tokens)]
