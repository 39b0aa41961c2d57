"""What was saved is what was trained: read back, merged, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microplane.checkpoints.adapter import read_method
from microplane.checkpoints.attach_saved import attach
from microplane.evaluation.probe import difference_check, difference_note, probe_logits
from microplane.hardware import free_memory
from microplane.methods import Method
from microplane.models.files.load import load_model
from microplane.nn.number_format import NumberFormat
from microplane.objectives.base import AnyObjective, ProbeRow

MERGE_TOLERANCE = 1e-3  # largest logit difference in float32; logits are of the order of 10


def merge_checks(
    objective: AnyObjective,
    path: Path,
    method: Method,
    run: Path,
    form: NumberFormat,
    parameters: int,
    probes: list[ProbeRow],
    tuned: list[Tensor],
) -> list[dict[str, Any]]:
    """Merge the adapter of a run into its base `path` in float32, where it is exact but for the order of sums.

    The adapter of a quantised base is merged into the original one, which is not what it was trained on: how far that
    is from the logits `tuned` of what was trained is said.
    """
    if method.whole_model or not method.mergeable:
        return []
    if 4 * parameters > free_memory() / 2:
        need = f"{4 * parameters / 1e9:.0f} GB for the model in float32 are not free here; see microplane merge"
        return [{"name": "merged = unmerged", "passed": None, "value": None, "detail": f"not checked: {need}"}]
    model = load_model(path, torch.float32)
    attach(model, method, run / "adapter", read_method(run / "adapter")[1])
    unmerged = probe_logits(objective, model, probes)
    method.merge(model)
    merged = probe_logits(objective, model, probes)
    checks = [difference_check("merged = unmerged", unmerged, merged, MERGE_TOLERANCE)]
    if form.quantised:
        checks.append(difference_note(f"merged into the base before {form.quantised}", tuned, merged))
    return checks
