"""A rehearsal: the whole of a run - train, evaluate, save, read back, merge - on its eight longest rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microplane.config.knobs import RunKnobs
from microplane.data.progress import Watcher
from microplane.data.reading.read import read_rows
from microplane.evaluation.probe import Check
from microplane.runs.inline_data import InlineData, as_json
from microplane.runs.prepare import Prepared
from microplane.runs.result import IMPROVED
from microplane.runs.train import train_run

ROWS, STEPS, ANSWERS = 8, 2, 2
MOST_TOKENS = 1024  # of the rows together, so that it takes seconds
LONGEST = 256  # of a row
NEW_TOKENS = 16
MOST_CHARACTERS = 20_000  # of a text
CHARACTERS = 8  # that a token has, at most, in plain text
_LITTLE_MEASURED = {"rows": ANSWERS, "general": None, "speed": False}  # text for `general` is read already
HARM = 1.1  # times the loss before, above which two steps have done harm


@dataclass(frozen=True)
class Rehearsed:
    checks: list[Check]
    loss_before: float  # of the rows themselves, before the first step
    loss_after: float  # and after the last
    seconds: float  # of training
    tokens_per_second: float
    peak_memory_bytes: int  # of the whole process
    lowers_lr: bool  # the run itself goes on at a smaller rate where it diverges

    def wrong(self) -> list[str]:
        """What went wrong, in words."""
        failed = [
            f"the rehearsal's check failed: {check.name} ({check.detail or check.value})"
            for check in self.checks
            if check.passed is False and check.name != IMPROVED
        ]
        return failed + ([] if self.lowers_lr else self._harm())

    def doubtful(self) -> list[str]:
        """What a run may get over."""
        way = "; training goes back and on at a smaller rate where validation tells so"
        return [text + way for text in self._harm()] if self.lowers_lr else []

    def _harm(self) -> list[str]:
        if not self.loss_after > HARM * self.loss_before:
            return []
        return [
            f"two steps on {ROWS} rows raised the loss of these rows from {self.loss_before:.3f} to "
            f"{self.loss_after:.3f}: the learning rate is likely too high (train.lr)"
        ]


def rehearse(prepared: Prepared, watch: Watcher) -> Rehearsed:
    """Run it small, in a folder that is deleted afterwards. The rows are those that take the most memory, one of each
    class first; they are validated on too, and the shortest of them are measured.

    Raises:
        MicroplaneError: what a run would end with.
    """
    with tempfile.TemporaryDirectory() as place:
        chosen = _shortened(prepared, list(_raw_rows(prepared)))
        shortest = sorted(chosen, key=lambda row: len(json.dumps(row, default=str)))[:ANSWERS]
        (measured := Path(place) / "measured").mkdir()
        rows, few = InlineData.of_rows(chosen).write(Path(place)), InlineData.of_rows(shortest).write(measured)
        small = _small(prepared.config, rows, few, place, prepared.objective.needs_head)
        result = train_run(small, rehearsal=True, watch=(quiet := _Quiet(watch))).result
    figures = result["train"]
    return Rehearsed(
        checks=[Check(**one) for one in result["checks"]],
        loss_before=quiet.losses[0],
        loss_after=quiet.losses[-1],
        seconds=figures["seconds"],
        tokens_per_second=figures["tokens_per_second"],
        peak_memory_bytes=result["peak_memory_bytes"],
        lowers_lr=prepared.config.train.lowers_lr,
    )


class _Quiet:
    """Shows what goes on, and keeps what the rehearsal says of its eight rows to itself, but for their losses."""

    def __init__(self, watch: Watcher):
        self.progress = watch.progress
        self.losses: list[float] = []

    def say(self, text: str) -> None:
        pass

    def record(self, record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            self.losses.append(record["validation_loss"])


def _small(config: RunKnobs, rows: Path, few: Path, place: str, labelled: bool) -> RunKnobs:
    """The run's configuration with little of everything that takes time."""
    most = None if labelled else min(config.eval.max_new_tokens or NEW_TOKENS, NEW_TOKENS)
    train_: dict[str, Any] = {
        "steps": STEPS,
        "epochs": None,
        "batch_size": ROWS,
        "batch_tokens": None,
        "eval_every": STEPS,
    }
    train_ |= {"lr": None} if config.train.lr == "auto" else {}  # there is too little to search on
    train_ |= {"save_every": None, "warmup": 0.0, "on_divergence": "go_on"}
    data: dict[str, Any] = {
        "train": str(rows),
        "validation": str(rows),
        "test": str(few),
        "limit": None,
        "skip_bad_rows": True,
    }
    data |= {"max_unknown": 1.0, "max_length": min(config.data.max_length, LONGEST)}
    return config.model_copy(
        update={
            "name": None,
            "runs": str(Path(place) / "runs"),
            "track": (),
            "data": config.data.model_copy(update=data),
            "train": config.train.model_copy(update=train_),
            "eval": config.eval.model_copy(update=_LITTLE_MEASURED | {"max_new_tokens": most}),
        }
    )


def _raw_rows(prepared: Prepared) -> Iterator[Mapping[str, Any]]:
    """The chosen rows as they stand in their files."""
    places = [place.rpartition(":") for place in _places(prepared)]
    for name in prepared.splits.summary.files["train"]:
        lines = {int(line) for file, _, line in places if file == Path(name).name}
        for row in read_rows(Path(name)) if lines else ():
            if row.line in lines and row.values is not None:
                yield as_json(row.values)
                lines.remove(row.line)
            if not lines:
                break


def _places(prepared: Prepared) -> list[str]:
    """Where the chosen rows stand: the longest, one of each class first, as many as fit together."""
    train, labelled = prepared.splits.train, prepared.splits.summary.task
    order = np.argsort(-train.lengths, kind="stable").tolist()
    if labelled:
        first: dict[tuple[float, ...], int] = {}
        for row in order:
            first.setdefault(tuple(train.labels(row).tolist()), row)
        order = [*first.values(), *order]
    chosen: dict[str, int] = {}
    for row in order:
        length = min(int(train.lengths[row]), LONGEST)
        if len(chosen) < ROWS and sum(chosen.values()) + length <= MOST_TOKENS:
            chosen.setdefault(train.where(row), length)
    return list(chosen) or [train.where(order[0])]


def _shortened(prepared: Prepared, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose texts are cut before they are read. All of a plain text is trained on, in as many rows as it takes."""

    def cut(text: str) -> str:
        if not prepared.splits.summary.plain_text:
            return text[:MOST_CHARACTERS]
        tokens = MOST_TOKENS // len(rows)
        start = text[: CHARACTERS * tokens]
        return start[: len(start) * tokens // max(tokens, len(prepared.tokenizer.encode(start)))]

    return [{key: cut(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
