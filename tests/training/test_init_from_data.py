"""The training rows by which a method chooses what it starts from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from microplane.training.init_from_data import sample_losses
from tests.tiny import MemoryDataset


class Seen:
    """An objective that notes which rows are read."""

    def __init__(self):
        self.rows: list[int] = []

    def collate(self, dataset, indices):
        self.rows += indices
        return SimpleNamespace(count=len(indices))

    def loss(self, model, batch):
        return torch.tensor(3.0 * batch.count)


def drawn(seed: int, rows: int = 8) -> list[int]:
    data = MemoryDataset([([1, 2, 3, 4], [False, False, number % 5 > 0, False]) for number in range(100)])
    objective = Seen()
    losses = sample_losses(objective, nn.Linear(1, 1), data, rows, seed, 8)
    assert [loss().item() for loss in losses] == [3.0] * (rows // 2)  # a mean over what a batch counts
    return objective.rows


def test_they_are_drawn_from_all_rows_that_train_by_the_seed():
    found = [drawn(seed) for seed in range(3)]
    assert found[0] == drawn(0)
    assert len({tuple(sorted(rows)) for rows in found}) == 3
    assert all(len(set(rows)) == 8 for rows in found)
    assert all(row % 5 for rows in found for row in rows)  # others have nothing to train
    assert np.max(found) > 50
