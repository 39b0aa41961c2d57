"""Measure a model, or a run, on a file: what `microplane eval` does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from microplane.config.build import shown
from microplane.config.knobs import DataKnobs, RunKnobs
from microplane.data.preparing.load_splits import load_rows
from microplane.data.preparing.summary import DataSummary
from microplane.data.progress import Silent, Watcher, counting
from microplane.errors import ConfigError, DataError, check_type, notices_to
from microplane.evaluation import text_metrics
from microplane.evaluation.evaluate import choose_rows, measure
from microplane.files import write_aside
from microplane.inference.check_ids import check_ids
from microplane.inference.pipeline import Pipeline, load
from microplane.objectives.base import Measured
from microplane.objectives.select import TextCandidates, candidates
from microplane.runs.asked import LENGTHS, TAKEN_OVER
from microplane.runs.baseline import check_loss
from microplane.runs.check_knobs import check_knobs_for_eval
from microplane.runs.general import open_general
from microplane.runs.inline_data import configured, in_a_file
from microplane.runs.max_length import within_context
from microplane.runs.numbered_classes import check_numbered_classes
from microplane.runs.trained_rows import trained_rows


def evaluate(
    model: str | Path | None = None,
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    knobs: RunKnobs | None = None,
    watch: Watcher | None = None,
    base: str | Path | None = None,
) -> Measured:
    """Measure a model, or a run, on rows: scores, and the prompts, targets and texts of the rows that are shown.

    A run is asked as it was trained: with its own template and system prompt.

    Args:
        model: the folder of a run or an adapter, or whatever `train` takes.
        data: a file, a folder, or rows.
        set: knobs by dotted name, as `{"eval.rows": 500}`.
        knobs: all of them at once, instead of the three above.
        watch: is told what happens.
        base: where the base of an adapter is, if not where the adapter says.

    Raises:
        MicroplaneError: for a model or data that cannot be used, saying why.

    Examples:
        >>> microplane.evaluate("runs/home", "test.jsonl")["scores"]
        {'loss': 0.02, 'perplexity': 1.02, 'exact_match': 0.917, ...}
    """
    inline = None
    if base is not None:
        check_type(base, "base", (str, Path), "a name or a path")
    if knobs is None:
        knobs, inline = configured(model, data, {}, set)
    elif model is not None or data is not None or set is not None:
        raise ConfigError("knobs are the whole configuration: leave out model, data and set")
    check_type(knobs, "knobs", RunKnobs, "a RunKnobs")
    if not knobs.data.train:
        raise ConfigError("there is no data: give the rows to measure on, as in evaluate(RUN, FILE)")
    with in_a_file(knobs, inline) as there:
        return measure_file(there, watch, None if base is None else str(base))


def measure_file(knobs: RunKnobs, watch: Watcher | None = None, base: str | None = None) -> Measured:
    """The same, of `knobs.model.name` on the rows of the file `knobs.data.train`.

    Args:
        base: where the base of an adapter is, if not where the adapter says.
    """
    with notices_to(watch.say if watch else None):
        return _measure_file(knobs, watch or Silent(), base)


def _measure_file(knobs: RunKnobs, watch: Watcher, base: str | None) -> Measured:
    loaded = load(knobs.model.name, knobs.model.dtype, knobs.model.revision, base, knobs.model.device)
    text_metrics.check(knobs.eval.metrics)
    for line in check_knobs_for_eval(knobs, loaded):
        watch.say(line)
    check_numbered_classes(loaded, knobs.data)
    loaded = _in_form(loaded, knobs.data)
    data = _as_trained(knobs.data, loaded)
    possible = candidates(loaded.model, data)
    if isinstance(possible, TextCandidates) and knobs.data.objective == "auto":
        possible = replace(possible, denoising="auto")  # the run's is of its plain text, and these rows may be pairs
    if possible.needs_head and not possible.classes:
        raise ConfigError(f"{knobs.model.name} has no task head, so it says nothing of labels yet: train one first")
    taken = loaded.method.num_virtual_tokens if loaded.method else 0
    asked = knobs.data.model_fields_set  # other lengths are said where rows are cut by them
    data = within_context(data, loaded.model.config.context, taken, watch.say, asked)
    for line in _other_lengths(data, loaded):
        watch.say(line)
    rows, objective, summary = load_rows(data, loaded.tokenizer, possible, counting(watch))
    check_ids(loaded.model, loaded.tokenizer, [rows.highest_id])
    _check_texts(loaded, summary)
    for warning in summary.warnings:
        watch.say(f"warning   {warning}")
    known = trained_rows(Path(knobs.model.name), data, possible, loaded.tokenizer.unicode, counting(watch))
    if known is not None and known.warning:
        watch.say(f"warning   {known.warning}")
    chosen, how = choose_rows(rows, knobs.eval.rows), (knobs.eval, data.template, "model", watch.progress, data.system)
    measured = measure(objective, loaded.model, loaded.tokenizer, rows, chosen, *how)
    check_loss(measured, loaded.model, knobs.model, "the model")
    general = open_general(knobs, loaded.model, loaded.tokenizer, taken, counting(watch))
    if general is not None:
        show = watch.progress("general text of the model")
        measured["scores"]["general_loss"] = general.loss(loaded.model, knobs.eval.batch_tokens, show)
    if known is not None and known.rows is not None:
        measured["trained_rows"] = known.rows
    return measured


def _check_texts(loaded: Pipeline, summary: DataSummary) -> None:
    """Raises: DataError, for rows of two texts where those of the run had one."""
    if summary.task and summary.second_texts and (loaded.about or {}).get("pairs") is False:
        raise DataError(
            f"{summary.files['train'][0]} is read as {summary.format}, and the run was trained on rows of one text. "
            "Say which that is with --set 'data.fields={text: COLUMN, text_pair: null}'"
        )


def _other_lengths(data: DataKnobs, loaded: Pipeline) -> list[str]:
    """What decides which part of a long row is measured, and was another in the run's own measurement."""
    about = loaded.about or {}
    differ = [name for name in LENGTHS if name in about and getattr(data, name) != about[name]]
    return [
        f"warning   data.{name} is {shown(getattr(data, name))} here and was {shown(about[name])} in the run: "
        "rows that are longer are measured otherwise than there"
        for name in differ
    ]


def _in_form(loaded: Pipeline, data: DataKnobs) -> Pipeline:
    """With the Unicode form and the languages that were asked for, if any were."""
    if data.unicode != "auto":
        loaded = replace(loaded, tokenizer=loaded.tokenizer.with_unicode(data.unicode))
    loaded = loaded.between(data.source_language, data.target_language)
    loaded.check_languages()
    return loaded


def _as_trained(data: DataKnobs, loaded: Pipeline) -> DataKnobs:
    """What was set of the data, and of a run what it was trained with where nothing was: its template, system prompt,
    lengths, columns, and what means that there is no label."""
    given: dict[str, Any] = {}
    if loaded.method is not None:
        given["template"] = loaded.template
        given["system"] = loaded.system if data.system is None else data.system
    for name in TAKEN_OVER:
        if name not in data.model_fields_set and (own := (loaded.about or {}).get(name)):
            given[name] = tuple(own) if isinstance(own, list) else own
    if loaded.model.task_head is not None:
        given["task"] = "auto"  # it is asked for the labels that it has
    return data.model_copy(update=given)


def check_out(out: Path, knobs: RunKnobs) -> None:
    """Refuse a place for the answers before they are made.

    Raises:
        ConfigError: if it is a folder, below something that is no folder, or a file of another kind: answers of before
            are written over, and nothing else.
    """
    above = next((folder for folder in out.parents if folder.exists()), Path())
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the name of a file")
    if not above.is_dir():
        raise ConfigError(f"--out {out} cannot be made: {above} is no folder")
    files = [knobs.data.train, knobs.data.validation, knobs.data.test]
    if out.exists() and any(out.samefile(file) for file in files if file and Path(file).exists()):
        raise ConfigError(f"--out {out} would overwrite the data that is measured on; choose another file")
    if out.is_file() and out.stat().st_size and not _holds_answers(out):
        raise ConfigError(f"--out {out} is there already, and holds no answers of before; choose another file")


def _holds_answers(file: Path) -> bool:
    """Whether `write_answers` wrote it, or `SuiteResult.write_samples`."""
    try:
        with file.open("rb") as lines:
            first = json.loads(lines.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    keys = set(first) if isinstance(first, dict) else set[str]()
    return keys == {"prompt", "target", "answer"} or keys >= {"task", "asked", "said"}


def write_answers(out: Path, measured: Measured) -> None:
    """One line of JSON per answer: prompt, target, answer."""
    rows = zip(measured["prompts"], measured["targets"], measured["texts"], strict=True)
    lines = [json.dumps({"prompt": p, "target": t, "answer": a}, ensure_ascii=False) for p, t, a in rows]
    write_aside(out, "".join(line + "\n" for line in lines).encode())
