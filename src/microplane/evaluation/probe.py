"""The same few rows through two models that should be equal: trained and saved, unmerged and merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from microplane.checkpoints.tensors import read_tensors, save_tensors
from microplane.errors import CheckpointError
from microplane.evaluation.evaluate import choose_rows
from microplane.models.heads import task_scores
from microplane.nn.rows import Pairs, Rows

if TYPE_CHECKING:
    from microplane.data.preparing.load_splits import Dataset

ROWS, TOKENS, POSITIONS = 4, 256, 64


class ProbeRow(NamedTuple):
    ids: list[int]
    cut: int = 0  # of a pair: where its target begins


def probe_rows(dataset: Dataset) -> list[ProbeRow]:
    """A few rows, spread over the data set."""
    return [_probe_row(dataset, row) for row in choose_rows(dataset, ROWS)]


def _probe_row(dataset: Dataset, row: int) -> ProbeRow:
    ids, trained = dataset[row]
    if dataset.shape.kind != "pairs":
        return ProbeRow(ids[:TOKENS].tolist())
    cut = int(np.argmax(trained))
    source, target = ids[:cut][:TOKENS].tolist(), ids[cut:][:TOKENS].tolist()
    return ProbeRow(source + target, len(source))


@torch.no_grad()
def probe_logits(model: Any, rows: Sequence[ProbeRow]) -> list[Tensor]:
    """Logits (up to 64, V) at the last positions of each row, or what the task head says, one row at a time."""
    was_training = model.training
    model.eval()
    logits = [_logits(model, row) for row in rows]
    model.train(was_training)
    return logits


def _logits(model: Any, row: ProbeRow) -> Tensor:
    if model.task_head is not None:
        return task_scores(model, Rows.of([row.ids]))
    if model.KIND != "encoder-decoder":
        return model.logits(model(Rows.of([row.ids]))[-POSITIONS:])
    cut = row.cut or len(row.ids)
    target = [model.config.decoder_start, *row.ids[cut:]]
    return model.logits(model(Pairs(Rows.of([row.ids[:cut]]), Rows.of([target])))[-POSITIONS:])


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest absolute difference between two lists of logits of the same rows."""
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(one, other, strict=True))


def probe_file(run: Path) -> Path:
    # Beside the checkpoints and not in adapter/, which people publish: the rows are their data.
    return run / "resume" / "probe.safetensors"


def save_probe(run: Path, rows: Sequence[ProbeRow], logits: Sequence[Tensor]) -> None:
    """Remember what the best weights answer to the rows, to compare with what is read back."""
    tensors = {f"ids/{i}": torch.tensor(row.ids) for i, row in enumerate(rows)}
    tensors["cuts"] = torch.tensor([row.cut for row in rows])
    save_tensors(probe_file(run), tensors | {f"logits/{i}": x for i, x in enumerate(logits)})


def read_probe(run: Path) -> tuple[list[ProbeRow], list[Tensor]]:
    tensors = read_tensors(probe_file(run), CheckpointError)
    cuts = tensors["cuts"].tolist()
    rows = [ProbeRow(tensors[f"ids/{i}"].tolist(), cut) for i, cut in enumerate(cuts)]
    return rows, [tensors[f"logits/{i}"] for i in range(len(cuts))]


@dataclass(frozen=True)
class Check:
    """A question that a run answers about itself."""

    name: str
    passed: bool | None  # None: not checked, or for information
    value: float | str | None
    detail: str


def difference_check(name: str, one: Sequence[Tensor], other: Sequence[Tensor], tolerance: float) -> Check:
    """Whether two models give the same logits of the same rows, up to `tolerance`."""
    difference = largest_difference(one, other)
    detail = f"largest logit difference on {len(one)} stored rows; at most {tolerance:g} passes"
    return Check(name, difference <= tolerance, difference, detail)


def difference_note(name: str, one: Sequence[Tensor], other: Sequence[Tensor]) -> Check:
    """A difference that is to be known, not to pass or fail."""
    detail = f"largest logit difference on {len(one)} stored rows, for information"
    return Check(name, None, largest_difference(one, other), detail)
