"""What result.json says: the parts of it that need no model."""

from __future__ import annotations

import math
import resource
import statistics
import sys
from pathlib import Path
from typing import Any

from microplane.objectives.select import AnySplits
from microplane.objectives.text import perplexity
from microplane.training.loop import Outcome, read_lines

RATES = ("tokens_per_second", "trained_tokens_per_second")


def data_figures(splits: AnySplits) -> dict[str, Any]:
    summary = splits.summary.to_dict()
    rows = {f"{name}_rows": summary["rows"].get(name, 0) for name in ("train", "validation", "test")}
    totals = {
        "train_tokens": summary["tokens"]["train"],
        "trained_tokens": summary["trained_tokens"]["train"],
        "truncated": sum(summary["truncated"].values()),
        "overlap": sum(summary["overlap"].values()),
        "files": [file for files in summary["files"].values() for file in files],
    }
    return summary | rows | totals


def train_figures(outcome: Outcome, splits: AnySplits, speed: Path) -> dict[str, Any]:
    clock = [line for line in read_lines(speed) if line.keys() >= {"seconds", *RATES}]  # it may have been tampered with
    totals = outcome.totals
    return {
        "steps": totals.step,
        "steps_planned": outcome.steps_planned,
        "best_step": outcome.best_step,
        "epochs": round(totals.tokens / int(splits.train.lengths.sum()), 3),
        "stopped_early": outcome.stopped_early,
        "overfitting": outcome.overfitting,
        "decisions": outcome.decisions,
        "seconds": sum(line["seconds"] for line in clock),
        "tokens": totals.tokens,
        "trained_tokens": totals.trained_tokens,
        **{name: _median(clock, name) for name in RATES},
        "peak_memory_bytes": peak_memory(),
        "train_loss": outcome.train_loss,
        "validation_loss": outcome.validation_loss,
        "validation_perplexity": perplexity(outcome.validation_loss),
    }


def _median(records: list[dict[str, Any]], name: str) -> float | None:
    return statistics.median(record[name] for record in records) if records else None


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def moved_check(outcome: Outcome) -> dict[str, Any]:
    name = "every trainable tensor moved"
    if outcome.moved is None:
        return {"name": name, "passed": None, "value": None, "detail": "not checked: too few steps to tell"}
    value = f"{outcome.moved} of {outcome.tensors}"
    detail = "checksums of all trainable tensors, start against end"
    return {"name": name, "passed": outcome.moved == outcome.tensors, "value": value, "detail": detail}


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
