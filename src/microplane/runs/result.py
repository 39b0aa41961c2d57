"""What result.json says of a run, as types. It is written at the end of a run, well or not.

Sections that a run has not come to are left out. JSON has no NaN and no infinity: they become null.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from microplane.evaluation.probe import Check
from microplane.files import json_line, json_value, object_in, write_aside
from microplane.objectives.base import ByClass
from microplane.objectives.select import AnySplits
from microplane.objectives.text import perplexity
from microplane.runs.general import General
from microplane.runs.own_forecast import ForecastSection
from microplane.runs.used_speed import UsedSpeed
from microplane.training.log import Record, read_lines
from microplane.training.loop import Outcome

RATES = ("tokens_per_second", "trained_tokens_per_second")
IMPROVED = "validation improved"  # the name of a check


@dataclass
class MethodSection:
    name: str
    facts: dict[str, Any]  # `Method.facts`: what it needs and can do
    total_parameters: int  # of the base
    trainable_parameters: int | None = None
    adapter_bytes: int | None = None  # of the weights file in adapter/
    ways: list[str] | None = None  # where it can be used: formats of `microplane export`, and vllm


@dataclass(frozen=True)
class ModelSection:
    name: str  # as it was asked for
    path: str
    architecture: str  # Hugging Face's name
    parameters: int
    stored: str  # the number format of its files
    dtype: str  # of the base in this run; int8 and nf4 for a quantised one
    compute: str  # what is multiplied
    base_bytes: int  # held in memory
    fingerprint: str


@dataclass(frozen=True)
class TrainSection:
    """Losses are means of -log p over trained tokens, in nats; or of a task head's loss over the labels."""

    steps: int
    steps_planned: int
    best_step: int  # whose weights are in adapter/
    epochs: float
    stopped_early: bool
    verdict: dict[str, Any] | None  # what went wrong: kind, since (a step), text; see `monitor.Verdict`
    retreats: list[Record]  # after divergence, to the best weights: step, from_step, lr_factor, why, checks
    decisions: list[Record]  # of a method that decides during the run: step, validation_loss, decision
    seconds: float  # of the steps alone
    tokens: int
    trained_tokens: int
    tokens_per_second: float | None  # medians over the steps
    trained_tokens_per_second: float | None
    peak_memory_bytes: int  # of the process, from the run's start to the end of training
    train_loss: float
    validation_loss: float
    validation_perplexity: float
    feature_cache: dict[str, Any] | None  # what was computed once and kept, if anything


@dataclass(frozen=True)
class MetricsSection:
    rows: int  # that were measured: for which answers were generated; all, where a task head answers or none are asked
    split: str  # test or validation
    before: dict[str, float]  # scores of the untouched model
    after: dict[str, float]
    lower_is_better: list[str]  # of their names
    by_class: ByClass  # the tuned model's, of rows with classes: precision, recall and F1, confusion, entities
    trivial: dict[str, dict[str, float]] = field(default_factory=dict)  # of predictors without a pretrained model
    beaten: str | None = None  # said in words: by which of them, if by one


@dataclass(frozen=True)
class GeneralSection:
    """What was forgotten: the loss on general text, in nats per token."""

    text: str  # `default`, or the file
    tokens: int  # that are predicted
    objective: str  # by which they are
    before: float  # of the untouched model
    after: float
    difference: float  # what the tuned model loses more

    @classmethod
    def of(cls, general: General, before: float, after: float) -> Self:
        """Of a text, and the losses of both models on it."""
        return cls(general.text, general.tokens, general.objective.name, before, after, after - before)

    def __str__(self) -> str:
        return f"general text: loss {self.before:.3f} before, {self.after:.3f} after ({self.difference:+.3f})"


@dataclass(frozen=True)
class Sample:
    """A held-out row, and what the untouched and the tuned model answer."""

    prompt: str
    target: str
    before: str
    after: str
    where: str  # file and line


@dataclass
class Result:
    name: str
    schema: int = 1
    status: str = "running"  # then success, stopped or failed
    error: str | None = None
    run: dict[str, Any] | None = None  # the whole configuration, with all that was inferred
    method: MethodSection | None = None
    model: ModelSection | None = None
    data: dict[str, Any] | None = None  # `DataSummary` and totals over it
    environment: dict[str, Any] | None = None
    advice: list[str] | None = None
    forecast: ForecastSection | None = None
    choice: dict[str, Any] | None = None  # where the method or its rank was auto: `runs.choice.Choice`
    lr_search: dict[str, Any] | None = None  # where train.lr was auto: `RangeTest`
    train: TrainSection | None = None
    checks: list[Check] | None = None
    metrics: MetricsSection | None = None
    general: GeneralSection | None = None
    speed: UsedSpeed | None = None  # where eval.speed asks for it
    samples: list[Sample] | None = None
    measuring_seconds: float | None = None  # of measuring the tuned model on the held-out rows
    seconds: float | None = None  # of the whole run, all its sittings: the command's
    peak_memory_bytes: int | None = None  # of the process, over the whole run with its checks
    peak_device_memory_bytes: int | None = None  # of what torch holds on an accelerator, over the same

    def to_dict(self) -> dict[str, Any]:
        """As result.json has it."""
        sections = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: json_value(value) for name, value in sections.items() if value is not None or name == "error"}

    def write(self, folder: Path) -> None:
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_aside(folder / "result.json", text.encode() + b"\n")


def earlier_seconds(folder: Path) -> float:
    """What the sittings before this one took, as far as they could note it."""
    seconds = object_in(folder / "result.json").get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


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


def train_section(
    outcome: Outcome, row_tokens: int, speed: Path, peak_memory: int, feature_cache: dict[str, Any] | None
) -> TrainSection:
    """What came of training.

    Args:
        row_tokens: of all training rows.
        speed: the file with the clock's figures of each step, which may have been tampered with.
    """
    clock = [line for line in read_lines(speed) if line.keys() >= {"seconds", *RATES}]
    totals = outcome.totals
    tokens_per_second, trained_per_second = (_median(clock, name) for name in RATES)
    return TrainSection(
        steps=totals.step,
        steps_planned=outcome.steps_planned,
        best_step=outcome.best_step,
        epochs=round(totals.tokens / row_tokens, 3),
        stopped_early=outcome.stopped_early,
        verdict=outcome.verdict._asdict() if outcome.verdict else None,
        retreats=outcome.retreats,
        decisions=outcome.decisions,
        seconds=sum(line["seconds"] for line in clock),
        tokens=totals.tokens,
        trained_tokens=totals.trained_tokens,
        tokens_per_second=tokens_per_second,
        trained_tokens_per_second=trained_per_second,
        peak_memory_bytes=peak_memory,
        train_loss=outcome.train_loss,
        validation_loss=outcome.validation_loss,
        validation_perplexity=perplexity(outcome.validation_loss),
        feature_cache=feature_cache,
    )


def _median(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return statistics.median(record[name] for record in records) if records else None


def course_checks(outcome: Outcome) -> list[Check]:
    """How training went: whether it made the model better, and whether it made all its steps."""
    made, planned, best = outcome.totals.step, outcome.steps_planned, outcome.best_step
    checks = []
    if made and not outcome.interrupted:
        told = "no validation was better than the one before the first step, so the weights are those of the start"
        better = f"the best of all validations, of {outcome.validation_loss:.4g}, is that of step {best}"
        checks.append(Check(IMPROVED, best > 0, f"step {best}", better if best else told))
    if outcome.stopped_early:
        why = f"stopped early: {outcome.verdict}" if outcome.verdict else "stopped early: train.patience"
        checks.append(Check("all steps made", None, f"{made} of {planned}", why))
    return checks


def keep_answers(folder: Path, samples: Sequence[Sample], trivial: Mapping[str, Sequence[str]]) -> None:
    """All held-out rows whose answers were looked at, as answers.jsonl: of each what a `Sample` tells, and what each
    predictor without a model says.

    Args:
        trivial: by the predictor's name, of each sample what it says.
    """
    lines = [
        json_line(json_value(sample) | {"trivial": {name: texts[number] for name, texts in trivial.items()}})
        for number, sample in enumerate(samples)
    ]
    write_aside(folder / "answers.jsonl", "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))


def moved_check(outcome: Outcome) -> Check:
    name = "every trainable tensor moved"
    if outcome.moved is None:
        return Check(name, None, None, "not checked: too few steps to tell")
    value = f"{outcome.moved} of {outcome.tensors}"
    return Check(name, outcome.moved == outcome.tensors, value, "checksums of all trainable tensors, start against end")
