"""What was saved is what was trained: read back from the disk, merged, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from microplane.checkpoints.adapter import read_method
from microplane.checkpoints.attach_saved import attach_saved_adapter
from microplane.evaluation.probe import (
    Check,
    difference_check,
    difference_note,
    probe_logits,
    read_probe,
    size_of,
)
from microplane.hardware import free_memory
from microplane.models.contract import Model
from microplane.models.files.load import build_model, load_model
from microplane.models.files.opened import OpenedBase
from microplane.nn.quantised import weight_count
from microplane.objectives.base import ProbeRow
from microplane.runs.prepare import Prepared

MERGE_TOLERANCE = 1e-3  # largest logit difference in float32; logits are of the order of 10


def reopen(prepared: Prepared, base: OpenedBase, folder: Path) -> Model:
    """The model that a run has saved, as a stranger would open it: the base, and the adapter from its files."""
    if prepared.method.whole_model:
        return load_model(folder / "adapter", prepared.form)
    model = base.untouched()
    _attach_saved(prepared, model, folder)
    return model


def verify(prepared: Prepared, saved: Model, folder: Path) -> list[Check]:
    """Compare `saved`, which `reopen` gave, with what was trained; and its merged weights with it unmerged."""
    rows, trained = read_probe(folder)
    logits = probe_logits(prepared.objective, saved, rows)
    same = saved.SAME_LOGITS * size_of(prepared.objective, trained)
    return [
        difference_check("saved = trained", trained, logits, same),
        *_merge(prepared, saved, folder, rows, logits),
    ]


def _merge(
    prepared: Prepared, saved: Model, folder: Path, rows: Sequence[ProbeRow], tuned: list[Tensor]
) -> list[Check]:
    """Merge the adapter into its base in float32, where merging is exact but for the order of sums.

    The adapter of a quantised base is merged into the original one, which is not what it was trained on: how far that
    is from the logits `tuned` of what was trained is said.
    """
    method, quantised = prepared.method, prepared.form.quantised
    if method.whole_model or not method.mergeable:
        return []
    size = 4 * weight_count(saved)
    if size > free_memory() / 2:
        need = f"{size / 1e9:.0f} GB for the model in float32 are not free here; see microplane merge"
        return [Check("merged = unmerged", None, None, f"not checked: {need}")]
    if quantised:  # the weights before they were quantised are in the files alone
        model = build_model(prepared.checkpoint, torch.float32)
        _attach_saved(prepared, model, folder)
    else:  # whose numbers are those of the run's format; `microplane merge` starts from the files
        model = saved.float()
        model.compute = None
    unmerged = probe_logits(prepared.objective, model, rows)
    method.merge(model)
    merged = probe_logits(prepared.objective, model, rows)
    tolerance = MERGE_TOLERANCE * size_of(prepared.objective, unmerged)
    checks = [difference_check("merged = unmerged", unmerged, merged, tolerance)]
    if quantised:
        checks.append(difference_note(f"merged into the base before {quantised}", tuned, merged))
    return checks


def _attach_saved(prepared: Prepared, model: Model, folder: Path) -> None:
    method, metadata = read_method(folder / "adapter")
    attach_saved_adapter(model, method, folder / "adapter", metadata)
