"""The same few rows through two models that should be equal: trained and saved, unmerged and merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from microplane.checkpoints.tensors import read_tensors, save_tensors
from microplane.data.store import Dataset
from microplane.errors import CheckpointError
from microplane.evaluation.evaluate import choose_rows
from microplane.models.contract import Model, in_eval_mode
from microplane.nn.rows import Rows
from microplane.objectives.base import AnyObjective, ProbeRow

ROWS = 4


def probe_rows(objective: AnyObjective, dataset: Dataset, count: int = ROWS) -> list[ProbeRow]:
    """A few rows, spread over the data set."""
    return [objective.probe_row(dataset, row) for row in choose_rows(dataset, count)]


@torch.no_grad()
def probe_logits(objective: AnyObjective, model: Model, rows: Sequence[ProbeRow]) -> list[Tensor]:
    """Logits (up to 64, V) at the last positions of each row, or what the task head says, one row at a time."""
    with in_eval_mode(model):
        return [objective.probe(model, row).cpu() for row in rows]


@torch.no_grad()
def probe_states(model: Model, rows: Sequence[ProbeRow]) -> list[Tensor]:
    """States (tokens, D) of each row, of an encoder without a head."""
    with in_eval_mode(model):
        return [model(Rows.of([row.ids])).cpu() for row in rows]


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest absolute difference between two lists of logits of the same rows."""
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(one, other, strict=True))


def size_of(objective: AnyObjective, logits: Sequence[Tensor]) -> float:
    """By what a tolerance is multiplied: logits are of one size, and numbers of any."""
    if objective.name != "regression":
        return 1.0
    return max(1.0, *(float(one.float().abs().max()) for one in logits))


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
    detail = f"largest logit difference on {len(one)} stored rows; at most {tolerance:.3g} passes"
    return Check(name, difference <= tolerance, difference, detail)


def difference_note(name: str, one: Sequence[Tensor], other: Sequence[Tensor]) -> Check:
    """A difference that is to be known, not to pass or fail."""
    detail = f"largest logit difference on {len(one)} stored rows, for information"
    return Check(name, None, largest_difference(one, other), detail)
