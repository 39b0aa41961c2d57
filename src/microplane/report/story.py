"""What the report says: the sentence of the outcome, the cards, the tables. Words and values only, no markup."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microplane.report.curves import best_step, points, smooth
from microplane.report.places import quoted, shown_path
from microplane.report.read import RunRecord
from microplane.report.words import Fact, Figure, change, facts, is_finite, is_number, name_of, say

SPELLING = {  # a method that is not here goes by its name
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "lora+": "LoRA+",
    "qlora": "QLoRA",
    "dora": "DoRA",
    "ia3": "(IA)³",
    "vera": "VeRA",
    "full": "Full fine-tuning",
}
SECONDARY = ("json_valid", "perplexity", "loss")  # tell the outcome only where nothing else was measured
STATUS = {"success": "finished", "stopped": "stopped by hand", "failed": "failed", "unfinished": "no result yet"}
SAID_BY = {
    "rows": ("train_rows", "validation_rows", "test_rows"),
    "tokens": ("train_tokens",),
    "warnings": ("warnings",),
}
FORGOTTEN = ("text", "tokens", "before", "after", "difference")
FORECAST = {"peak_memory_bytes": "memory", "step_seconds": "time of a step", "seconds": "time of training"}
BY_CLASS = ("precision", "recall", "f1", "rows")
MAX_COMPARED = 4000  # characters; comparing longer texts word by word takes too long


@dataclass(frozen=True)
class Card:
    title: str
    main: Figure
    notes: list[tuple[str, Figure, str]]  # (words before, figure, words after)


@dataclass(frozen=True)
class MetricRow:
    key: str
    name: str
    before: Figure
    after: Figure
    change: str
    verdict: str


@dataclass(frozen=True)
class ClassRow:
    name: str
    figures: list[Figure]  # of `BY_CLASS`


@dataclass(frozen=True)
class Cell:
    """How often rows of one class were given another, or their own."""

    count: int
    share: float  # of the rows of that class
    right: bool


@dataclass(frozen=True)
class Output:
    title: str
    text: str
    parts: list[tuple[str, bool]]  # (text, differs from the target)
    verdict: str  # "equal", "differs"; empty for the target itself


@dataclass(frozen=True)
class Sample:
    where: str
    prompt: str
    outputs: list[Output]


@dataclass(frozen=True)
class Check:
    name: Any
    detail: Any
    passed: Any  # None: it was not made
    value: Figure


def method_title(record: RunRecord) -> str:
    """`LoRA (rank 16)`."""
    knobs = record.method_knobs
    name = str(record.result["method"].get("name") or knobs.get("name") or "The run")
    return SPELLING.get(name, name) + (f" (rank {knobs['rank']})" if knobs.get("rank") else "")


def leading_metric(record: RunRecord) -> str | None:
    """The metric that tells the outcome: the run's first one that measures the task."""
    names = [name for name, value in record.metrics("after").items() if is_number(value)]
    ranked = [name for name in names if name not in SECONDARY] + [name for name in SECONDARY if name in names]
    return ranked[0] if ranked else None


def outcome(record: RunRecord) -> str:
    """The run in one plain sentence."""
    title, steps, status = method_title(record), record.last_step, record.result["status"]
    made = f"{steps:,} step{'' if steps == 1 else 's'}" if steps else ""
    if status == "failed":
        return f"{title} failed {'after ' + made if made else 'before its first step'}."
    if status == "unfinished":
        planned = record.result["train"].get("steps_planned")
        made = f"{steps:,} of {planned:,} steps" if steps and isinstance(planned, int) else made
        return f"{title} has made {made or 'no step'} so far and has no result yet: it is going on, or was interrupted."
    told = _achievement(record)
    time = record.result.get("seconds") or record.result["train"].get("seconds")
    told += f" in {say(time, 'seconds')}" if is_finite(time) else ""
    if status == "stopped":
        told += f", stopped by hand after {made or 'no step'}"
    elif record.result["train"].get("stopped_early"):
        told += f", stopped early after {made}" + (f": {kind['kind']}" if (kind := verdict(record)) else "")
    return f"{title} {told}."


def _achievement(record: RunRecord) -> str:
    name, metrics = leading_metric(record), record.result["metrics"]
    if name is None:
        loss = record.result["train"].get("validation_loss")
        return (
            f"reached a validation loss of {say(loss, 'loss')}"
            if is_finite(loss)
            else f"trained {record.last_step:,} steps"
        )
    before, after = record.metrics("before").get(name), record.metrics("after")[name]
    rows = f" on {metrics['rows']:,} {held_out(record)} rows" if isinstance(metrics.get("rows"), int) else ""
    if not is_number(before):
        return f"reached {name_of(name)} {say(after, name)}{rows}"
    verdict = change(name, before, after, record.lower_is_better)[1]
    if verdict == "same":
        return f"left {name_of(name)} at {say(after, name)}{rows}"
    worse = ", worse than the untouched model," if verdict == "worse" else ""
    return f"took {name_of(name)} from {say(before, name)} to {say(after, name)}{worse}{rows}"


def held_out(record: RunRecord) -> str:
    """Validation rows chose the weights, so only test rows are called held-out."""
    return "validation" if record.result["metrics"].get("split") == "validation" else "held-out"


def warnings(record: RunRecord) -> list[str]:
    """What must not be overlooked."""
    failed = [str(check.get("name")) for check in record.result["checks"] if check.get("passed") is False]
    found = [f"{len(failed)} check{'' if len(failed) == 1 else 's'} failed: {', '.join(failed)}."] if failed else []
    if isinstance(beaten := record.result["metrics"].get("beaten"), str):
        found.insert(0, f"{beaten}.")
    data = record.result["data"].get("warnings")
    return found + [f"{text}." for text in data if isinstance(text, str)] if isinstance(data, list) else found


def verdict(record: RunRecord) -> Mapping[str, Any] | None:
    """What went wrong with training: its kind and a text. Runs of version 0.1 have a text on overfitting alone."""
    train = record.result["train"]
    found, earlier = train.get("verdict"), train.get("overfitting")
    if isinstance(found, dict):
        return found
    return {"kind": "overfitting", "text": earlier} if isinstance(earlier, str) else None


def cards(record: RunRecord) -> list[Card]:
    """The figures that matter most; those that were not measured are left out."""

    def figure(key: str) -> Figure:
        section, _, name = key.rpartition(".")
        return Figure(key, (record.result[section] if section else record.result).get(name))

    whole_time, whole_memory = (
        key if is_finite(record.result.get(key)) else f"train.{key}" for key in ("seconds", "peak_memory_bytes")
    )
    share, whole = trained_share(record), (record.result["method"].get("facts") or {}).get("whole_model")
    layout = [
        ("Validation loss", "train.validation_loss", [
            ("perplexity ", "train.validation_perplexity", ""),
            ("best at step ", "train.best_step", ""),
            ("train loss ", "train.train_loss", ""),
        ]),
        ("Time", whole_time, [
            ("training ", "train.seconds" if whole_time == "seconds" else "", ""),
            ("", "train.steps", " steps"),
            ("", "train.epochs", " epochs"),
        ]),
        ("Tokens per second", "train.tokens_per_second", [("", "train.trained_tokens_per_second", " of them trained")]),
        ("Peak memory", whole_memory, [("of ", "environment.memory_bytes", " on this machine")]),
        ("Trainable parameters", "method.trainable_parameters", [
            (f"{share} of " if share else "of ", "method.total_parameters", ""),
            ("model of " if whole else "adapter of ", "method.adapter_bytes", ""),
        ]),
    ]  # fmt: skip

    def note(before: str, key: str, after: str) -> tuple[str, Figure, str]:
        return before, figure(key), after.removesuffix("s") if figure(key).value == 1 else after

    made = [
        Card(title, figure(key), [note(*parts) for parts in notes if parts[1] and figure(parts[1])])
        for title, key, notes in layout
    ]
    return [card for card in made if card.main]


def trained_share(record: RunRecord) -> str:
    """`3.6%` of the parameters train."""
    method = record.result["method"]
    trained, total = method.get("trainable_parameters"), method.get("total_parameters")
    if not (is_finite(trained) and is_finite(total) and total):
        return ""
    percent = 100 * trained / total
    return f"{percent:.2g}%" if percent < 10 else f"{percent:.0f}%"


def metric_rows(record: RunRecord) -> list[MetricRow]:
    """The metrics table; the metric that tells the outcome comes first."""
    before, after = record.metrics("before"), record.metrics("after")
    names = sorted(before | after, key=lambda name: name != leading_metric(record))
    return [
        MetricRow(
            name,
            name_of(name),
            Figure(f"metrics.before.{name}", before.get(name)),
            Figure(f"metrics.after.{name}", after.get(name)),
            *change(name, before.get(name), after.get(name), record.lower_is_better),
        )
        for name in names
    ]


def forgotten(record: RunRecord) -> list[Figure]:
    """The loss on general text before and after training, and what it grew by; empty where it was not measured."""
    found = [Figure(f"general.{name}", record.result["general"].get(name)) for name in FORGOTTEN]
    return found if all(found) else []


def class_tables(record: RunRecord) -> list[tuple[str, list[ClassRow]]]:
    """Of the tuned model: precision, recall and F1 of each class, and of entities by kind."""
    tables = []
    for section, title in (("classes", "Class"), ("entities", "Entity")):
        rows = [
            ClassRow(name, [Figure(f"metrics.by_class.{section}.{name}.{one}", scores.get(one)) for one in BY_CLASS])
            for name, scores in record.by_class(section).items()
        ]
        tables += [(title, rows)] if rows else []
    return tables


def confusion(record: RunRecord) -> list[tuple[str, list[Cell]]]:
    """Of each class, which classes the tuned model said; empty where that was not measured."""
    table = []
    for number, (name, row) in enumerate(zip(record.by_class("classes"), record.confusion, strict=False)):
        total = sum(row) or 1
        table.append((name, [Cell(count, count / total, at == number) for at, count in enumerate(row)]))
    return table


def samples(record: RunRecord) -> list[Sample]:
    """The held-out rows with their outputs side by side."""
    return [_sample(row) for row in record.result["samples"]]


def _sample(row: Mapping[str, Any]) -> Sample:
    target = str(row.get("target", ""))
    outputs = [Output("Target", target, compared(str(row.get("after", target)), target), "")]
    for title, key in (("Base model", "before"), ("Tuned model", "after")):
        if row.get(key) is not None:
            text = str(row[key])
            equal = text.strip() == target.strip()
            outputs.append(Output(title, text, compared(target, text), "equal" if equal else "differs"))
    return Sample(str(row.get("where") or ""), str(row.get("prompt", "")), outputs)


def compared(target: str, text: str) -> list[tuple[str, bool]]:
    """The text in parts, those marked that are not in `target`; unmarked where little is alike."""
    if text.strip() == target.strip() or len(target) + len(text) > MAX_COMPARED:
        return [(text, False)]
    old, new = (re.findall(r"\w+|\s+|[^\w\s]", side) for side in (target, text))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < 0.5:
        return [(text, False)]
    parts = [("".join(new[j1:j2]), tag != "equal") for tag, _, _, j1, j2 in matcher.get_opcodes() if j1 < j2]
    return parts or [(text, False)]


def checks(record: RunRecord) -> list[Check]:
    return [
        Check(
            check.get("name"), check.get("detail"), check.get("passed"), Figure(f"checks.{i}.value", check.get("value"))
        )
        for i, check in enumerate(record.result["checks"])
    ]


def curve_table(record: RunRecord) -> list[dict[str, Any]]:
    """The validations in figures, with the smoothed train loss at the same step; at most about a hundred."""
    train = dict(smooth(points(record.train, "loss")))
    best, apart = best_step(record), -(-len(record.validation) // 100)
    return [
        {
            "step": line["step"],
            "validation": Figure("validation_loss", line["validation_loss"]),
            "train": Figure("loss", train.get(line["step"])),
            "best": line["step"] == best,
        }
        for number, line in enumerate(record.validation)
        if number % apart == 0 or line["step"] == best or number == len(record.validation) - 1
    ]


def loss_summary(record: RunRecord) -> str:
    """The loss chart in words, for those who do not see it."""
    known = [value for _, value in smooth(points(record.train, "loss")) if value is not None]
    text = (
        f"Train loss, smoothed, from {say(known[0], 'loss')} to {say(known[-1], 'loss')}."
        if known
        else "No train loss."
    )
    best = best_step(record)
    value = next((line["validation_loss"] for line in record.validation if line["step"] == best), None)
    return text + (f" Validation loss {say(value, 'loss')} at the best step, {best:,}." if value is not None else "")


def parts(record: RunRecord) -> list[tuple[str, list[Fact]]]:
    """What was run, by part: every field that result.json has, once, and the method's own knobs."""
    result = record.result
    told = {"overfitting", "verdict", "retreats", "notices"}  # in full, beside the curves and among the warnings
    told.update(*(shares for whole, shares in SAID_BY.items() if result["data"].get(whole)))

    def part(section: str) -> list[Fact]:
        return facts({name: value for name, value in result[section].items() if name not in told}, section)

    method = part("method")
    method[1:1] = facts({name: value for name, value in record.method_knobs.items() if name != "name"}, "run.method")
    found = [("Model", part("model")), ("Method", method), ("Data", part("data")), ("Training", part("train"))]
    return [(title, rows) for title, rows in found if rows]


def forecast(record: RunRecord) -> list[tuple[str, Figure, Figure, str]]:
    """What was forecast before training beside what was measured: (name, forecast, measured, how far it was off)."""
    found = record.result["forecast"]
    measured, off = (found.get(name) if isinstance(found.get(name), dict) else {} for name in ("measured", "off"))
    return [
        (
            FORECAST[name],
            Figure(f"forecast.{name}", found[name]),
            Figure(f"forecast.measured.{name}", measured.get(name)),
            f"{abs(off[name]):.0%} too {'high' if off[name] > 0 else 'low'}" if is_finite(off.get(name)) else "",
        )
        for name in FORECAST
        if is_finite(found.get(name))
    ]


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """What to type next, as (what it does, the command)."""
    where = shown_path(record.folder)
    folder = quoted(where)
    again = ("Run it again", f"microplane train --config {quoted(f'{where}/run.yaml')}")
    go_on = (
        "Go on where it stopped" if record.result["status"] == "stopped" else "Go on, if it was interrupted",
        f"microplane train --resume {folder}",
    )
    use = ("Use it", f"microplane generate {folder} {_example_prompt(record)}")
    return {"success": [use, again], "stopped": [use, go_on, again], "failed": [again]}.get(
        record.result["status"], [go_on, again]
    )


def _example_prompt(record: RunRecord) -> str:
    prompts = (row.get("prompt") for row in record.result["samples"])
    plain = (text for text in prompts if isinstance(text, str) and text.isprintable() and 0 < len(text) <= 80)
    # one with markers of a chat template is no longer what a user types
    return next((shlex.quote(text) for text in plain if "<" not in text), '"..."')
