"""What was understood of the data: numbers and warnings, the same for the terminal, `result.json` and the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from microplane.data.reading.values import is_number
from microplane.models.configs.head import IGNORED

MANY = 0.01  # share of dropped rows, and of rows that stand on both sides, that deserves a warning
MANY_NUMBERS = 20  # classes called by numbers, above which they may be meant as numbers
UNKNOWN = 0.001  # share of unknown tokens that deserves one


@dataclass
class DataSummary:
    """Facts of all splits. Dictionaries are by split: train, validation, perhaps test."""

    format: str  # as printed: "prompt/completion (question -> answer)"
    template: str  # "chat", "plain", or "none" for plain text
    system: str | None
    max_length: int
    files: dict[str, list[str]]
    validation_from: str  # "split off" or "file"
    format_name: str  # "prompt/completion"; of rows with labels the task
    objective: str  # of `microplane.objectives.OBJECTIVES`
    max_target_length: int | None = None  # of an encoder-decoder's answers
    bad: dict[str, int] = field(default_factory=dict)  # rows left out, by kind
    bad_examples: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    trained_tokens: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)  # min, median, mean, p95, max in tokens
    truncated: dict[str, int] = field(default_factory=dict)  # rows that lost the start of their prompt, or the end
    ends_cut: dict[str, int] = field(default_factory=dict)  # those of them that lost the end
    in_pieces: dict[str, int] = field(default_factory=dict)  # texts that were cut into several rows
    by_answer: dict[str, int] = field(default_factory=dict)  # conversations of which answers are rows of their own
    answers_cut: dict[str, int] = field(default_factory=dict)  # rows that lost the end of their answer too
    dropped: dict[str, int] = field(default_factory=dict)  # rows in which nothing is trained
    duplicates: dict[str, int] = field(default_factory=dict)  # rows that repeat another of their split
    overlap: dict[str, int] = field(default_factory=dict)  # held-out rows that are training rows too
    overlap_examples: list[str] = field(default_factory=list)
    knows_all: bool = True  # the tokenizer has no unknown token
    unk_rate: float = 0.0  # share of unknown tokens in the training rows
    trained_unk_rate: float = 0.0  # the same among trained tokens
    input_unk_rate: float = 0.0  # the same among the others
    task: str | None = None  # of a task head
    labels: list[str] = field(default_factory=list)  # names of its classes
    counted: str = "tokens"  # what the loss is a sum over, and `trained_tokens` counts: tokens, rows or words
    label_counts: dict[str, dict[str, int]] = field(default_factory=dict)  # rows (or words) of each class
    unlabelled: dict[str, int] = field(default_factory=dict)  # rows left out that say that they have no label
    unicode: str = "as-is"  # the form that texts were brought into
    rewritten: int = 0  # rows that were in another form
    notices: list[str] = field(default_factory=list)  # of rows that may not be what was meant
    split_by: str = ""  # the column that says of each row which split it belongs to
    shared_system: str | None = None  # the system message that all training rows have
    second_texts: int = 0  # training rows with two texts
    fingerprint: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def plain_text(self) -> bool:
        """Whether rows are cut out of texts in which nothing is asked."""
        return not self.task and self.template == "none"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The facts as short lines for a terminal."""
        rows = ", ".join(f"{name} {count:,}" for name, count in self.rows.items())
        split = told_split(self.split_by, self.validation_from)
        tokens, trained = sum(self.tokens.values()), sum(self.trained_tokens.values())
        lines = [
            f"format    {self.format}",
            f"template  {self.template}",
            f"rows      {rows}{split}",
            f"tokens    {tokens:,}, of which {trained:,} are trained",
        ]
        if self.task:
            lines[-1] = f"tokens    {tokens:,}; {trained:,} labelled {self.counted}"
            lines += self._class_lines()
        if not self.knows_all:
            shares = f"{self.input_unk_rate:.1%} of the inputs' tokens, {self.trained_unk_rate:.1%} of the answers'"
            lines.append(f"unknown   {shares}" if not self.task else f"unknown   {self.unk_rate:.1%} of the tokens")
        if self.rewritten:
            lines.append(
                f"unicode   {_many(self.rewritten, 'row')} brought to {self.unicode.upper()} (data.unicode), where a "
                "letter and its marks are one character"
            )
        if pieces := sum(self.in_pieces.values()):
            lines.append(f"cut       {_many(pieces, 'text')} above {self.max_length:,} tokens into rows of that length")
        if several := sum(self.by_answer.values()):
            lines.append(
                f"answers   of {_many(several, 'conversation')} stand in rows of their own, for the chat template "
                "renders them in another form once they are history"
            )
        if self.bad:
            lines.append("left out  " + ", ".join(f"{count:,} x {kind}" for kind, count in self.bad.items()))
        return lines + [f"warning   {warning}" for warning in self.warnings]

    def _class_lines(self) -> list[str]:
        counts = self.label_counts["train"]
        total = max(1, sum(counts.values()))
        shown = [f"{name} {counts.get(name, 0) / total:.0%}" for name in self.labels[:12]]
        more = f" and {len(self.labels) - 12} more" if len(self.labels) > 12 else ""
        return [f"classes   {', '.join(shown)}{more}"] if self.labels else []

    def warn(self) -> None:
        """Fill in `warnings` from the numbers."""
        self.warnings = [
            *self.notices,
            *self._left_out(),
            *self._cut(),
            *self._of_classes(),
            *self._repeated(),
            *self._unknown(),
        ]

    def _left_out(self) -> list[str]:
        left = sum(self.unlabelled.values())
        lines = [f"{_many(left, 'row')} without a label left out (data.no_label)"] if left else []
        for name, count in self.dropped.items():
            total = count + self.rows[name]
            if count > MANY * total:
                share = f"{count:,} of {total:,} {name} rows ({count / total:.1%})"
                lines.append(f"{share} have nothing to train on and were dropped")
        return lines

    def _cut(self) -> list[str]:
        cut, answers = sum(self.truncated.values()), sum(self.answers_cut.values())
        limit = f"{self.max_length:,} tokens (data.max_length)"
        ends = sum(self.ends_cut.values())
        what = "text" if self.task else "prompt"
        lines = [
            f"{_many(count, 'row')} above {limit} lost the {side} of their {what}"
            for side, count in (("start", cut - ends), ("end", ends))
            if count
        ]
        if self.max_target_length:
            limit = f"{self.max_target_length:,} tokens (data.max_target_length)"
        whole = ", and all that stood before them" if self.objective == "next_token" and not self.task else ""
        return [*lines, f"{_many(answers, 'answer')} above {limit} lost their end{whole}"] if answers else lines

    def _of_classes(self) -> list[str]:
        """Classes that a split lacks; a -1 that may be no class; numbers that may be no classes."""
        lines = []
        occur = [name for name in self.labels if any(counts.get(name) for counts in self.label_counts.values())]
        for split, counts in self.label_counts.items():
            if lacking := [name for name in occur if not counts.get(name)]:
                shown = ", ".join(lacking[:6]) + (f" and {len(lacking) - 6} more" if len(lacking) > 6 else "")
                lines.append(f"no {split} row has {'the class' if len(lacking) == 1 else 'one of the classes'} {shown}")
        if none := [name for name in ("-1", str(IGNORED)) if name in occur]:
            listed = none[0] if len(none) == 1 else f"[{', '.join(none)}]"
            what = " and ".join(none) + (" is a class" if len(none) == 1 else " are classes")
            lines.append(f"{what} like the others here; if that means that there is no label: data.no_label={listed}")
        if self.task == "classification" and len(occur) > MANY_NUMBERS and all(map(is_number, occur)):
            lines.append(f"{len(occur):,} numbers are classes here; to learn them as numbers: data.task=regression")
        return lines

    def _repeated(self) -> list[str]:
        lines = []
        for name, count in self.overlap.items():
            if count:
                first = f" ({self.overlap_examples[0]})" if self.overlap_examples else ""
                share = f"{count:,} of {self.rows[name]:,} {name} rows stand in the training rows too{first}"
                lines.append(f"{share}: numbers measured on {name} will look too good")
        return lines

    def _unknown(self) -> list[str]:
        rate = max(self.unk_rate, self.trained_unk_rate)
        if rate <= UNKNOWN:
            return []
        where = f"{self.unk_rate:.1%} of the tokens and {self.trained_unk_rate:.1%} of the trained tokens"
        return [f"{where} are unknown to the tokenizer (<unk>): the model cannot read or write what they stand for"]


def told_split(split_by: str, validation_from: str) -> str:
    """Where the splits come from, behind the numbers of their rows."""
    said = [f"by the column {split_by!r}"] if split_by else []
    said += ["validation split off"] if validation_from == "split off" else []
    return f" ({'; '.join(said)})" if said else ""


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def length_facts(lengths: np.ndarray) -> dict[str, float]:
    """Smallest, median, mean, 95th percentile and largest."""
    return {
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "mean": round(float(lengths.mean()), 1),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
    }
