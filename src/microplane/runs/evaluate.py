"""Measure a model, or a run, on a file: what `microplane eval` does."""

from __future__ import annotations

import json
from pathlib import Path

from microplane.config.knobs import RunKnobs
from microplane.data.preparing.load_splits import load_rows
from microplane.data.progress import Silent, Watcher, counting
from microplane.errors import ConfigError, notices_to
from microplane.evaluation import text_metrics
from microplane.evaluation.evaluate import choose_rows, measure
from microplane.files import write_aside
from microplane.inference.check_ids import check_ids
from microplane.inference.pipeline import load
from microplane.objectives.base import Measured
from microplane.objectives.select import candidates
from microplane.runs.check_knobs import check_knobs_for_eval
from microplane.runs.max_length import within_context


def measure_file(knobs: RunKnobs, watch: Watcher | None = None) -> Measured:
    """Scores, prompts, targets and texts of `knobs.model.name` on the rows of `knobs.data.train`.

    A run is asked as it was trained: with its own template and system prompt.
    """
    with notices_to(watch.say if watch else None):
        return _measure_file(knobs, watch or Silent())


def _measure_file(knobs: RunKnobs, watch: Watcher) -> Measured:
    loaded = load(knobs.model.name, knobs.model.dtype, knobs.model.revision)
    text_metrics.check(knobs.eval.metrics)
    for line in check_knobs_for_eval(knobs, loaded):
        watch.say(line)
    data = knobs.data
    if loaded.method is not None:
        data = data.model_copy(
            update={"template": loaded.template, "system": loaded.system if data.system is None else data.system}
        )
    if loaded.model.task_head is not None:
        data = data.model_copy(update={"task": "auto"})  # it is asked for the labels that it has
    possible = candidates(loaded.model, data)
    if possible.needs_head and not possible.classes:
        raise ConfigError(f"{knobs.model.name} has no task head, so it says nothing of labels yet: train one first")
    taken = loaded.method.num_virtual_tokens if loaded.method else 0
    data = within_context(data, loaded.model.config.context, taken, watch.say)
    rows, objective = load_rows(data, loaded.tokenizer, possible, counting(watch))
    check_ids(loaded.model, loaded.tokenizer, [rows.highest_id])
    chosen, how = choose_rows(rows, knobs.eval.rows), (knobs.eval, data.template, "model", watch.progress)
    return measure(objective, loaded.model, loaded.tokenizer, rows, chosen, *how)


def check_out(out: Path, knobs: RunKnobs) -> None:
    """Refuse a place for the answers before they are made.

    Raises:
        ConfigError: if it is a folder, the data itself, or below something that is no folder.
    """
    above = next((folder for folder in out.parents if folder.exists()), Path())
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the name of a file")
    if not above.is_dir():
        raise ConfigError(f"--out {out} cannot be made: {above} is no folder")
    files = [knobs.data.train, knobs.data.validation, knobs.data.test]
    if out.exists() and any(out.samefile(file) for file in files if file and Path(file).exists()):
        raise ConfigError(f"--out {out} would overwrite the data that is measured on; choose another file")


def write_answers(out: Path, measured: Measured) -> None:
    """One line of JSON per answer: prompt, target, answer."""
    rows = zip(measured["prompts"], measured["targets"], measured["texts"], strict=True)
    lines = [json.dumps({"prompt": p, "target": t, "answer": a}, ensure_ascii=False) for p, t, a in rows]
    write_aside(out, "".join(line + "\n" for line in lines).encode())
