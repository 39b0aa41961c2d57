"""The same few rows through two models that should be equal: trained and saved, unmerged and merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microplane.errors import CheckpointError
from microplane.nn.rows import Rows
from microplane.training.checkpoint import read_tensors, save_tensors
from microplane.training.evaluate import choose_rows

if TYPE_CHECKING:
    from microplane.data.dataset import TokenDataset

ROWS, TOKENS, POSITIONS = 4, 256, 64


def probe_rows(dataset: TokenDataset) -> list[list[int]]:
    """Token ids of a few rows, spread over the data set."""
    return [dataset[row][0][:TOKENS].tolist() for row in choose_rows(dataset, ROWS)]


@torch.no_grad()
def probe_logits(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits (up to 64, V) at the last positions of each row, computed one row at a time."""
    was_training = model.training
    model.eval()
    logits = [model.logits(model(Rows.of([row]))[-POSITIONS:]) for row in rows]
    model.train(was_training)
    return logits


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest absolute difference between two lists of logits of the same rows."""
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(one, other, strict=True))


def probe_file(run: Path) -> Path:
    # Beside the checkpoints and not in adapter/, which people publish: the rows are their data.
    return run / "resume" / "probe.safetensors"


def save_probe(run: Path, rows: Sequence[Sequence[int]], logits: Sequence[Tensor]) -> None:
    """Remember what the best weights answer to the rows, to compare with what is read back."""
    tensors = {f"ids/{i}": torch.tensor(row) for i, row in enumerate(rows)}
    save_tensors(probe_file(run), tensors | {f"logits/{i}": x for i, x in enumerate(logits)})


def read_probe(run: Path) -> tuple[list[list[int]], list[Tensor]]:
    tensors = read_tensors(probe_file(run), CheckpointError)
    count = range(len(tensors) // 2)
    return [tensors[f"ids/{i}"].tolist() for i in count], [tensors[f"logits/{i}"] for i in count]
