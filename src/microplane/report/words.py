"""Numbers as people say them, and the names of fields in plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

LOWER_IS_BETTER = frozenset(
    {"loss", "perplexity", "rmse", "mae", "mse", "wer", "cer", "ter"}
)  # where a result is silent
MINUS = "\N{MINUS SIGN}"


def count(value: float) -> str:
    """`9,216`, `4.88 million`."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,}" if isinstance(value, int) else significant(value)


def short_count(value: float) -> str:
    """`590 k`, `22.7 M`, `1.1 B`, as sizes of models are told."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f}"


def significant(value: float, digits: int = 4) -> str:
    """Up to `digits` digits that matter: `0.3412`, `1,024`, `1e-5`."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        decimals = 0 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def share(value: float) -> str:
    """`84.7%` of a share in 0..1. Only 0 is 0% and only 1 is 100%."""
    percent = f"{100 * value:.1f}"
    if percent == "0.0" and value > 0:
        return "<0.1%"
    if percent == "100.0" and value < 1:
        return ">99.9%"
    return percent.removesuffix(".0") + "%"


def size(value: float) -> str:
    """`92 MB`, `1.34 GB`, in powers of 1000."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= unit:
            return f"{significant(value / unit, 3)} {name}"
    return f"{value:.0f} bytes"


def duration(value: float) -> str:
    """`0.34 s`, `3 min 20 s`, `2 h 5 min`."""
    if value < 59.95:
        return f"{significant(value, 2 if value < 1 else 3)} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def moment(text: str) -> str:
    """`23 November 2026, 19:07 UTC` of an ISO date; another text as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".strip()


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else significant(value, 3)


def score(value: float) -> str:
    return significant(value, 3)


SPEAK: dict[str, Callable[[float], str]] = {
    "count": count,
    "share": share,
    "bytes": size,
    "seconds": duration,
    "rate": rate,
    "score": score,
    "loss": significant,
}

UNITS = {
    "seconds": "seconds",
    "step_seconds": "seconds",
    "adapter_bytes": "bytes",
    "peak_memory_bytes": "bytes",
    "memory_bytes": "bytes",
    "tokens_per_second": "rate",
    "trained_tokens_per_second": "rate",
    "validation_perplexity": "score",
    "perplexity": "score",
    "exact_match": "share",
    "json_valid": "share",
    "json_equal": "share",
    "accuracy": "share",
    "precision": "share",
    "recall": "share",
    "f1": "share",
    "entity_f1": "share",
    "entity_precision": "share",
    "entity_recall": "share",
    "unk_rate": "share",
    "trained_unk_rate": "share",
}

NAMES = {
    "exact_match": "exact match",
    "json_valid": "valid JSON",
    "json_equal": "equal JSON",
    "macro_f1": "macro-F1",
    "f1": "F1",
    "entity_f1": "F1 of entities",
    "entity_precision": "precision of entities",
    "entity_recall": "recall of entities",
    "rouge": "ROUGE",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
    "dtype": "computed in",
    "stored": "stored as",
    "adapter_bytes": "size of the adapter",
    "peak_memory_bytes": "peak memory",
    "memory_bytes": "memory",
    "tokens_per_second": "tokens per second",
    "trained_tokens_per_second": "trained tokens per second",
    "seconds": "time",
    "step_seconds": "time of a step",
    "quantize": "base quantised",
    "optimizers": "optimizers",
    "starts_at_base": "starts as the base model",
    "trains_base": "trains the base's own weights",
    "whole_model": "saves a whole model",
    "overlap": "rows in train and held-out data",
    "truncated": "shortened prompts",
    "answers_cut": "shortened answers",
    "ends_cut": "prompts that lost their end",
    "in_pieces": "texts cut into rows",
    "unlabelled": "rows without a label left out",
    "bad": "bad rows left out",
    "dropped": "rows with nothing to train",
    "duplicates": "repeated rows",
    "unk_rate": "unknown tokens",
    "trained_unk_rate": "unknown trained tokens",
    "lengths": "tokens in a row",
    "p95": "95th percentile",
    "validation_from": "validation rows from",
    "steps_planned": "planned steps",
    "microplane": "Microplane",
    "torch": "PyTorch",
    "python": "Python",
    "cpu": "processor",
}
# What null means there.
NOTHING = {"quantize": "no", "optimizers": "any", "commit": "not in a repository"}


def name_of(key: str) -> str:
    """A field's name in words."""
    return NAMES.get(key, key.replace("_", " "))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def say(value: Any, key: str) -> str:
    """The value of the field `key` for people."""
    if value is None:
        return NOTHING.get(key, "not measured" if key in UNITS or key.endswith("_loss") else "none")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        if not math.isfinite(value):
            return "not a number" if math.isnan(value) else ("infinite" if value > 0 else f"{MINUS}infinite")
        unit = UNITS.get(key, "count" if isinstance(value, int) else "loss")
        return SPEAK[unit](value).replace("-", MINUS, 1) if value < 0 else SPEAK[unit](value)
    if key == "fingerprint" and isinstance(value, str) and len(value) > 16:
        return value[:12] + "…"
    if key == "date" and isinstance(value, str):
        return moment(value)
    if isinstance(value, list) and all(isinstance(item, str) or is_number(item) for item in value):
        return ", ".join(dict.fromkeys(map(str, value))) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Figure:
    """A value of result.json on the page: where it stands there, exactly what it is, and how people say it."""

    key: str  # dotted: "metrics.after.exact_match"
    value: Any

    @property
    def leaf(self) -> str:
        return self.key.rsplit(".", 1)[-1]

    @property
    def exact(self) -> str:
        """The value as JSON."""
        return json.dumps(self.value, ensure_ascii=False)

    @property
    def hint(self) -> str:
        """The exact value where the text says less."""
        plain = self.value if isinstance(self.value, str) else self.exact
        return "" if plain == self.text or self.value is None or isinstance(self.value, bool | list) else plain

    @property
    def text(self) -> str:
        return say(self.value, self.leaf)

    @property
    def is_number(self) -> bool:
        return is_number(self.value)

    @property
    def is_share(self) -> bool:
        return UNITS.get(self.leaf) == "share" and is_number(self.value) and 0 <= self.value <= 1

    def __bool__(self) -> bool:
        return self.value is not None


@dataclass(frozen=True)
class Fact:
    """A row of a list of facts: its name, and one figure or several, each with a word before it."""

    name: str
    figures: list[tuple[str, Figure]]


def facts(section: Mapping[str, Any], prefix: str, label: str = "") -> list[Fact]:
    """All fields below a section; a dictionary of plain values is one row, one of dictionaries is a row for each."""
    rows: list[Fact] = []
    for name, value in section.items():
        key, title = f"{prefix}.{name}", label + name_of(name)
        if not isinstance(value, dict):
            rows += [Fact(title, [("", Figure(key, value))])] if value != [] else []
        elif name == "facts":
            rows += facts(value, key)
        elif any(isinstance(item, dict) for item in value.values()):
            rows += facts(value, key, f"{title}, ")
        elif value:
            rows.append(Fact(title, [(name_of(word), Figure(f"{key}.{word}", item)) for word, item in value.items()]))
    return rows


def change(key: str, before: Any, after: Any, lower: Collection[str] | None = None) -> tuple[str, str]:
    """How a metric moved, as ("+84.4 points", "better"); empty where a side is missing or not a number.

    Args:
        lower: the metrics of which less is better, as the result says.
    """
    if not (is_finite(before) and is_finite(after)):
        return "", ""
    difference = after - before
    if UNITS.get(key) == "share":
        amount = f"{abs(100 * difference):.1f}".removesuffix(".0") + " points"
    else:
        amount = say(abs(difference), key)
    if difference == 0:
        return amount, "same"
    better = (difference < 0) == (key in (LOWER_IS_BETTER if lower is None else lower))
    return ("+" if difference > 0 else MINUS) + amount, "better" if better else "worse"
