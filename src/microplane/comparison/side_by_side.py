"""Finished runs side by side: what differs between them, and how they did on the rows that all of them answered.

Runs are compared where they answered the same held-out rows, those of the first of them; the others are shown, and said
not to be comparable. Each run is one seed, so intervals are over rows alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microplane.comparison.folder import TRIALS
from microplane.comparison.page import render_runs
from microplane.comparison.scoring import metrics_of
from microplane.comparison.shown import AS_THEY_ARE
from microplane.comparison.statistics import interval
from microplane.comparison.table import (
    UNTOUCHED,
    Answers,
    Measured,
    curve,
    difference_of,
    interval_of,
    row_lines,
    scored,
    told,
)
from microplane.comparison.verdict import Judgement
from microplane.config.build import dotted
from microplane.errors import ConfigError
from microplane.files import write_aside
from microplane.report.places import home_name, renamed, shown_path
from microplane.report.read import ReportError, RunRecord, read_run
from microplane.report.story import STATUS, method_title
from microplane.training.log import read_lines

SHOWN_ROWS = 200  # with all answers
NOT_SETTINGS = {"name", "runs", "track"}  # of run.yaml: where it lies, and who is told
PAGE = "side-by-side.html"
FIRST = b"<!doctype html"  # what a page begins with


def write_side_by_side(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of several runs.

    Args:
        folders: of runs, at least two; what the first answered is what the others are compared on.
        out: the file; `side-by-side.html` beside the first run otherwise.

    Raises:
        ConfigError: for fewer than two different runs, or a place that cannot be written to.
        ReportError: for a folder that holds no run, or a damaged one.
    """
    result = side_by_side(folders)
    path = out or folders[0].absolute().parent / PAGE
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; give the name of a file")
    if path.is_file() and not path.read_bytes().lower().startswith(FIRST):
        raise ConfigError(f"--out {path} is there already, and is no page; choose another file")
    try:
        write_aside(path, render_runs(result).encode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place with --out") from None
    return path


def side_by_side(folders: Sequence[Path]) -> dict[str, Any]:
    """What the page tells: `runs` (a row for each, in their order), `settings` that differ, `curves` by trained tokens,
    and the `answer` and the `rows` of those that can be compared."""
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise ConfigError("give two different runs or more to lay them side by side; one alone has its own report")
    records = dict(zip(_names(folders), map(read_run, folders), strict=True))
    answers = {name: _answers(record) for name, record in records.items()}
    alike = _alike(records, answers)
    found, judgement = _judged(records, alike) if alike else (None, None)
    result = {
        "runs": [
            _row(name, place, record, found, judgement)
            for (name, record), place in zip(records.items(), _places(folders), strict=True)
        ],
        "not_comparable": {name: _why(answers[name]) for name in records if name not in alike},
        "answer": told(found, judgement) if found and judgement and len(alike) > 1 else None,
        "reference": next(iter(alike), None),
        "metric": _metric(found, judgement),
        "baselines": [
            {"name": name, "score": interval_of(interval(scores))} for name, scores in found.baselines.items()
        ]
        if found
        else [],
        "settings": _settings(records),
        "measured": _measured(records),
        "curves": {
            name: curve(read_lines(record.folder / "metrics.jsonl"), "trained_tokens")
            for name, record in records.items()
        },
        "rows": row_lines(found, SHOWN_ROWS) if found and len(alike) > 1 else [],
    }
    return _shown(result, folders)


def _names(folders: Sequence[Path]) -> list[str]:
    """The runs' own names, or where they lie if two have the same."""
    own = [folder.resolve().name for folder in folders]
    twice = Counter(own)
    return [place if twice[name] > 1 else name for name, place in zip(own, _places(folders), strict=True)]


def _places(folders: Sequence[Path]) -> list[str]:
    """Where runs lie: as one would type it here, or from the last folder that all of them lie in."""
    shown, common = list(map(shown_path, folders)), _common(folders)
    return [renamed(place, {str(common): ""}) if Path(place).is_absolute() else place for place in shown]


def _common(folders: Sequence[Path]) -> Path:
    """The last folder that all of them lie in."""
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))


def _shown(result: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Without paths of this machine, but for those that somebody typed. Trials of a comparison name their rows by
    absolute paths within its folder."""
    around = {place.absolute().parents[1] for place in folders if place.absolute().parent.name == TRIALS}
    inner = {str(place): "" for place in (Path.cwd(), _common(folders), *around) if place != Path(place.anchor)}
    names = home_name() | inner
    return {key: value if key in AS_THEY_ARE else renamed(value, names) for key, value in result.items()}


def _answers(record: RunRecord) -> Answers | None:
    """None of a run that did not come so far, or that an earlier version made."""
    if not (record.folder / "answers.jsonl").is_file():
        return None
    try:
        found = Answers.of(record.folder)
        return found if found.lines and found.targets and found.said("after") else None
    except (ValueError, KeyError, TypeError) as problem:
        raise ReportError(
            f"{record.folder / 'answers.jsonl'} is damaged: {problem}; remove it to see the rest"
        ) from None


def _alike(records: Mapping[str, RunRecord], answers: Mapping[str, Answers | None]) -> dict[str, Answers]:
    """Runs that answered the rows that the first of them answered, for the same kind of answer."""
    known = {name: own for name, own in answers.items() if own is not None}
    if not known:
        return {}
    first = next(iter(known))

    def asked(name: str) -> tuple[Any, ...]:
        lines = known[name].lines
        return _task(records[name]), [line["prompt"] for line in lines], known[name].targets

    alike = {name: own for name, own in known.items() if asked(name) == asked(first)}
    return alike if metrics_of(_task(records[first]), known[first].targets) else {}


def _task(record: RunRecord) -> str | None:
    task = record.result["data"].get("task")
    return str(task) if task else None


def _judged(records: Mapping[str, RunRecord], alike: Mapping[str, Answers]) -> tuple[Measured, Judgement]:
    """What those that can be compared scored on the same rows."""
    first = next(iter(alike))
    found = scored({name: [own] for name, own in alike.items()}, None, _task(records[first]))
    if len({tuple(own.said("before")) for own in alike.values()}) > 1:  # of several models none is the untouched one
        found.baselines.pop(UNTOUCHED, None)
    costs = {name: float(records[name].result["method"].get("trainable_parameters") or 0) for name in alike}
    return found, Judgement(found.methods, found.baselines, costs, found.metric.lower)


def _why(answers: Answers | None) -> str:
    if answers is None:
        return "it has kept no answers"
    return "it answered other rows"


def _metric(found: Measured | None, judgement: Judgement | None) -> dict[str, Any] | None:
    if found is None or judgement is None:
        return None
    metric = found.metric
    told = {"name": metric.name, "lower_is_better": metric.lower, "share": metric.share}
    return told | {"rows": judgement.rows, "dropped": found.dropped}


def _row(
    name: str, place: str, record: RunRecord, found: Measured | None, judgement: Judgement | None
) -> dict[str, Any]:
    result, train = record.result, record.result["train"]
    losses = train.get("train_loss"), train.get("validation_loss")
    score = found.methods.get(name) if found else None
    compared = judgement is not None and score is not None
    reference = next(iter(found.methods)) if found else None
    return {
        "run": name,
        "folder": place,
        "status": STATUS.get(result["status"], result["status"]),
        "method": method_title(record),
        "comparable": compared,
        "score": interval_of(interval(score)) if score is not None else None,
        "to_reference": difference_of(judgement, name, reference) if judgement and score is not None else None,
        "seconds": train.get("seconds"),
        "tokens_per_second": train.get("trained_tokens_per_second"),
        "peak_memory_bytes": train.get("peak_memory_bytes"),
        "trainable_parameters": result["method"].get("trainable_parameters"),
        "adapter_bytes": result["method"].get("adapter_bytes"),
        "steps": train.get("steps"),
        "validation_loss": losses[1],
        "gap": losses[1] - losses[0] if None not in losses else None,
        "forgetting": result["general"] or None,
    }


def _settings(records: Mapping[str, RunRecord]) -> list[dict[str, Any]]:
    """Knobs that are not the same in all runs, with each run's value; None where a run does not have one."""
    flat = {name: dotted(record.result["run"]) for name, record in records.items()}
    names = [name for name in dict.fromkeys(key for own in flat.values() for key in own) if name not in NOT_SETTINGS]
    every = {name: [own.get(name) for own in flat.values()] for name in names}
    return [{"name": name, "values": values} for name, values in every.items() if any(v != values[0] for v in values)]


def _measured(records: Mapping[str, RunRecord]) -> list[dict[str, Any]]:
    """Every metric of every run, before and after training, as its own report has it; on its own held-out rows."""
    names = dict.fromkeys(name for record in records.values() for name in record.metrics("after"))
    return [
        {
            "name": name,
            "values": [
                {"before": record.metrics("before").get(name), "after": record.metrics("after").get(name)}
                for record in records.values()
            ],
        }
        for name in names
    ]
