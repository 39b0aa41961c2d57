"""Measure a model, or a run, on a file: what `microplane eval` does."""

from __future__ import annotations

from typing import Any

from microplane.config import RunKnobs
from microplane.data.dataset import load_rows
from microplane.loading import load
from microplane.training.evaluate import choose_rows, measure
from microplane.watch import Silent, Watcher


def measure_file(knobs: RunKnobs, watch: Watcher | None = None) -> dict[str, Any]:
    """Scores, prompts, targets and texts of `knobs.model.name` on the rows of `knobs.data.train`.

    A run is asked as it was trained: with its own template and system prompt.
    """
    watch = watch or Silent()
    loaded = load(knobs.model.name, knobs.model.dtype, knobs.model.revision)
    data = knobs.data
    if loaded.method is not None:
        data = data.model_copy(update={"template": loaded.template, "system": data.system or loaded.system})
    rows = load_rows(data, loaded.tokenizer, lambda what, done, total: watch.progress(what)(done, total or 0))
    chosen = choose_rows(rows, knobs.eval.rows)
    loaded.template = data.template
    return measure(loaded.model, loaded.tokenizer, rows, chosen, knobs.eval, loaded.stop_ids, "model", watch.progress)
