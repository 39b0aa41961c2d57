"""Measure a model, or a run, on a file: what `microplane eval` does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from microplane.config.knobs import DataKnobs, RunKnobs
from microplane.data.preparing.load_splits import load_rows
from microplane.data.progress import Silent, Watcher, counting
from microplane.errors import ConfigError, notices_to
from microplane.evaluation.evaluate import choose_rows, measure
from microplane.files import write_aside
from microplane.inference.pipeline import Pipeline, load
from microplane.objectives.base import Measured
from microplane.objectives.select import TextCandidates, candidates
from microplane.runs.check_knobs import check_knobs_for_eval


def measure_file(knobs: RunKnobs, watch: Watcher | None = None) -> Measured:
    """Scores, prompts, targets and texts of `knobs.model.name` on the rows of `knobs.data.train`.

    A run is asked as it was trained: with its own template, system prompt and lengths.
    """
    with notices_to(watch.say if watch else None):
        return _measure_file(knobs, watch or Silent())


def _measure_file(knobs: RunKnobs, watch: Watcher) -> Measured:
    loaded = load(knobs.model.name, knobs.model.dtype, knobs.model.revision)
    for line in check_knobs_for_eval(knobs, loaded):
        watch.say(line)
    data = _as_trained(knobs.data, loaded)
    possible = candidates(loaded.model, data)
    if isinstance(possible, TextCandidates) and knobs.data.objective == "auto":
        possible = replace(possible, denoising="auto")  # the run's is of its plain text, and these rows may be pairs
    if possible.needs_head and not possible.classes:
        raise ConfigError(f"{knobs.model.name} has no task head, so it says nothing of labels yet: train one first")
    rows, objective, summary = load_rows(data, loaded.tokenizer, possible, counting(watch))
    for warning in summary.warnings:
        watch.say(f"warning   {warning}")
    chosen, how = choose_rows(rows, knobs.eval.rows), (knobs.eval, data.template, "model", watch.progress)
    return measure(objective, loaded.model, loaded.tokenizer, rows, chosen, *how)


def _as_trained(data: DataKnobs, loaded: Pipeline) -> DataKnobs:
    """What was set of the data, and of a run what it was trained with where nothing was: its template, system prompt,
    lengths, columns, and what means that there is no label. Rows are never longer than the model's context."""
    given: dict[str, Any] = {}
    if loaded.method is not None:
        given["template"] = loaded.template
        given["system"] = loaded.system if data.system is None else data.system
    for name in ("max_length", "max_target_length", "fields", "no_label", "objective"):
        if getattr(data, name) == DataKnobs.model_fields[name].default and (own := (loaded.about or {}).get(name)):
            given[name] = tuple(own) if isinstance(own, list) else own
    context, length = loaded.model.max_row_tokens, given.get("max_length", data.max_length)
    if context and length > context:
        given["max_length"] = context
    if loaded.model.task_head is not None:
        given["task"] = "auto"  # it is asked for the labels that it has
    return data.model_copy(update=given)


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
