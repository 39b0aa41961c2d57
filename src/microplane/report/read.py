"""Reads a run's folder for the report: `result.json`, `metrics.jsonl`, `speed.jsonl`, `run.yaml`.

Only the result can be damaged beyond use. A run that is still going has no result yet; what its lines tell stands in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microplane.config.build import read_yaml
from microplane.errors import ConfigError, MicroplaneError
from microplane.report.words import is_finite

SCHEMA = 1
SECTIONS = (
    "run",
    "method",
    "model",
    "data",
    "forecast",
    "choice",
    "lr_search",
    "train",
    "metrics",
    "general",
    "environment",
)
LISTS = ("samples", "checks")
STATUSES = ("success", "stopped", "failed")
Line = dict[str, Any]


class ReportError(MicroplaneError):
    """A run's folder that no report can be made of."""


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder holds. Every section of `result` is there, empty where the run has not got that far."""

    folder: Path
    result: dict[str, Any]
    train: list[Line]  # lines of metrics.jsonl with a training loss, by step
    validation: list[Line]  # those with a validation loss
    speed: list[Line]
    run_yaml: str

    def metrics(self, side: str) -> dict[str, Any]:
        """The metrics `before` or `after`; empty where they were not measured."""
        return self.result["metrics"].get(side) or {}

    def by_class(self, section: str) -> dict[str, dict[str, Any]]:
        """What the tuned model does with each of the `classes`, or `entities`, by name; empty where there are none."""
        found = self._by_class.get(section)
        named = found.items() if isinstance(found, dict) else ()
        return {name: scores for name, scores in named if isinstance(scores, dict)}

    @property
    def confusion(self) -> list[list[int]]:
        """Of each class, how often which is said; empty where that was not measured."""
        rows = self._by_class.get("confusion")
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            return []
        return rows if all(type(count) is int for row in rows for count in row) else []

    @property
    def _by_class(self) -> dict[str, Any]:
        found = self.result["metrics"].get("by_class")
        return found if isinstance(found, dict) else {}

    @property
    def lower_is_better(self) -> list[str] | None:
        """The metrics of which less is better; None where the result does not say."""
        names = self.result["metrics"].get("lower_is_better")
        return names if isinstance(names, list) else None

    @property
    def method_knobs(self) -> dict[str, Any]:
        knobs = self.result["run"].get("method")
        return knobs if isinstance(knobs, dict) else {}

    @property
    def last_step(self) -> int:
        """Optimizer steps that were made."""
        steps = self.result["train"].get("steps")
        return steps if isinstance(steps, int) else max((line["step"] for line in self.train), default=0)


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        ReportError: if there is no run, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise ReportError(f"there is no run at {folder}; give the folder of a run, such as runs/<name>")
    lines = _lines(folder / "metrics.jsonl")
    train = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "validation_loss" in line]
    speed = _lines(folder / "speed.jsonl")
    knobs = folder / "run.yaml"
    run_yaml = _content(knobs).decode("utf-8", errors="replace") if knobs.is_file() else ""
    if (folder / "result.json").is_file():
        result = read_result(folder / "result.json")
    elif lines or run_yaml:
        result = _so_far(train, validation, speed, _knobs(knobs))
    else:
        raise ReportError(
            f"{folder} holds no run: neither result.json nor metrics.jsonl; give a folder such as runs/<name>"
        )
    empty: dict[str, Any] = {name: {} for name in SECTIONS} | {name: [] for name in LISTS}
    known = {name: value for name, value in result.items() if value is not None}
    if not known.get("run"):  # it failed too early to write its knobs down twice
        known["run"] = _knobs(knobs)
    identity: dict[str, Any] = {"status": "unfinished", "name": folder.name, "error": None}
    return RunRecord(folder, identity | empty | known, train, validation, speed, run_yaml)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}. Allow reading it, and try again") from None


def read_result(path: Path) -> dict[str, Any]:
    """What a run's result.json holds.

    Raises:
        ReportError: if it is damaged, or of another version.
    """
    advice = "The figures of this run are lost; run it again, or remove result.json to see its curves alone"
    try:
        result = json.loads(_content(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is damaged: {' '.join(str(error).split())}. {advice}") from None
    if not isinstance(result, dict):
        raise ReportError(f"{path} is damaged: it holds a {type(result).__name__}, not the fields of a run. {advice}")
    if result.get("schema") != SCHEMA:
        raise ReportError(
            f"{path} has schema {result.get('schema')!r}; this version of microplane reads {SCHEMA}. "
            "Make the report with the version that made the run"
        )
    for name, value, fits, wanted in _parts(result):
        if not fits:
            raise ReportError(f"{path} is damaged: {name} is {value!r:.60}, expected {wanted}. {advice}")
    return result


def _parts(result: dict[str, Any]) -> Iterator[tuple[str, Any, bool, str]]:
    """Each part as (name, value, whether it can be read, what it should be)."""
    status = result.get("status")
    yield "status", status, status in list(STATUSES), " or ".join(STATUSES)
    for name in SECTIONS:
        yield name, result.get(name), isinstance(result.get(name) or {}, dict), "an object"
    for name in LISTS:
        items = result.get(name) or []
        yield (
            name,
            items,
            isinstance(items, list) and all(isinstance(item, dict) for item in items),
            "a list of objects",
        )
    for name in ("before", "after"):
        side = (result.get("metrics") or {}).get(name)
        yield f"metrics.{name}", side, isinstance(side or {}, dict), "an object"


def _lines(path: Path) -> list[Line]:
    """One line per step and kind, the newest first where a step stands twice, in the order of steps."""
    if not path.is_file():
        return []
    texts = _content(path).decode("utf-8", errors="replace").split("\n")
    lines: dict[tuple[Any, bool], Line] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        line = _parsed(text)
        if line is not None:
            lines[line["step"], "validation_loss" in line] = line
        elif number < len(texts):  # the last one may be half written: the run is going, or was killed
            raise ReportError(
                f"{path}:{number} is damaged: {text!r:.80}, expected an object with a step; remove that line"
            )
    return [lines[key] for key in sorted(lines)]


def _parsed(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def _knobs(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path) if path.is_file() else {}
    except ConfigError:
        return {}  # it is shown as text all the same


def _so_far(train: list[Line], validation: list[Line], speed: list[Line], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a run without a result. Lines give tokens and seconds of one step."""
    last = train[-1] if train else {}
    best = next((line for line in reversed(validation) if line.get("best")), {})
    seconds = _sum(speed, "seconds")
    timed = {line["step"] for line in speed}
    tokens, trained = (
        _sum([line for line in train if line["step"] in timed], key) for key in ("tokens", "trained_tokens")
    )
    facts = {
        "steps": last.get("step"),
        "steps_planned": speed[-1].get("steps") if speed else None,
        "best_step": best.get("step"),
        "epochs": last.get("epoch"),
        "seconds": seconds,
        "tokens": _sum(train, "tokens"),
        "trained_tokens": _sum(train, "trained_tokens"),
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "trained_tokens_per_second": trained / seconds if trained and seconds else None,
        "peak_memory_bytes": max(_numbers(speed, "memory_bytes"), default=None),
        "train_loss": last.get("loss"),
        "validation_loss": best.get("validation_loss"),
    }

    def section(name: str) -> dict[str, Any]:
        value = knobs.get(name)
        return value if isinstance(value, dict) else {}

    return {
        "status": "unfinished",
        "run": dict(knobs),
        "method": {"name": section("method").get("name")},
        "model": {"name": section("model").get("name")},
        "data": {"files": [path for key in ("train", "validation", "test") if (path := section("data").get(key))]},
        "train": {name: value for name, value in facts.items() if value is not None},
    }


def _numbers(lines: list[Line], key: str) -> list[Any]:
    return [line[key] for line in lines if is_finite(line.get(key))]


def _sum(lines: list[Line], key: str) -> Any:
    """The sum over all lines; None where none has it."""
    numbers = _numbers(lines, key)
    return sum(numbers) if numbers else None
