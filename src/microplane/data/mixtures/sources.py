"""The rows of a mixture's source: read once, checked, reduced to the fields of its templates, and found by number."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np

from microplane.data.mixtures.spec import SourcePlan
from microplane.data.mixtures.task_templates import Fields
from microplane.data.preparing.holdout import split_off
from microplane.data.reading.bad_rows import Problems, RowError, show
from microplane.data.reading.marked import Part, marks_of, rows_of
from microplane.data.reading.read import find_splits
from microplane.errors import DataError, nearest

IN_MEMORY = 2**26  # bytes of a source; larger ones are kept in a temporary file
MISSING = "missing column"


class FieldStore:
    """Rows by number. They lie in a file without a name; 16 bytes of each are in memory: where it ends, and a hash."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  # goes with the object
        self._ends, self._hashes = array("Q", [0]), array("Q")

    def add(self, row: Fields) -> None:
        content = json.dumps([row.values, row.options], ensure_ascii=False).encode()
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))
        said = json.dumps(row.values, sort_keys=True).encode()
        self._hashes.append(int.from_bytes(blake2b(said, digest_size=8).digest(), "little"))

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, row: int) -> Fields:
        self._file.seek(self._ends[row])
        return Fields(*json.loads(self._file.read(self._ends[row + 1] - self._ends[row])))

    @property
    def hashes(self) -> np.ndarray:
        """64 bits of each row's content, (rows,)."""
        return np.array(self._hashes, np.uint64)


@dataclass(frozen=True)
class Source:
    """A source that was read."""

    plan: SourcePlan
    store: FieldStore
    hashes: np.ndarray  # (all rows,)
    sides: Mapping[str, np.ndarray]  # row numbers to train on and to validate on
    problems: Problems
    note: str = ""  # on rows that are not read

    @property
    def name(self) -> str:
        return self.plan.knobs.name

    @property
    def has_options(self) -> bool:
        return self.plan.knobs.options is not None or self.plan.knobs.options_column is not None


def open_source(plan: SourcePlan, share: float, most: int, skip_bad_rows: bool) -> Source:
    """Read a source.

    Args:
        share: of its rows that are held out to validate on, chosen by content; 0 for none.
        most: held-out rows at most.

    Raises:
        DataError: if there is no such file, it is empty, lacks a column, or holds bad rows that are not to be skipped.
    """
    store, problems, seen = FieldStore(), Problems(), dict[str, None]()
    try:
        part = _part_of(plan)
        _read(plan, part, store, problems, seen)
    except DataError as error:
        raise DataError(f"{plan.where}: {error}") from None
    _check_columns(plan, seen)
    if problems.total and not skip_bad_rows:
        head = f"{plan.where}: {problems.total:,} of {problems.total + len(store):,} rows cannot be used:"
        tail = "Correct them, or leave them out with skip_bad_rows: true in the mixture."
        raise DataError("\n".join([head, *problems.lines(), tail]))
    if not len(store):
        raise DataError(f"{plan.where}: {plan.path} holds no rows that can be used")
    hashes = store.hashes
    held_out = np.zeros(len(store), bool)
    if share and len(np.unique(hashes)) > 1:
        held_out = split_off(hashes, share, most)
    sides = {"train": np.flatnonzero(~held_out), "validation": np.flatnonzero(held_out)}
    note = f"of {plan.path.name} the rows are read whose {part.column} is {part.split}" if part else ""
    return Source(plan, store, hashes, sides, problems, note)


def _read(plan: SourcePlan, part: Part | None, store: FieldStore, problems: Problems, seen: dict[str, None]) -> None:
    limit = plan.knobs.limit
    for path in source_files(plan):
        for row in rows_of(path, part):
            if limit is not None and len(store) >= limit:
                return
            problem = row.problem
            if row.values is not None:
                seen.update(dict.fromkeys(row.values))
                try:
                    store.add(_fields(plan, row.values))
                except RowError as error:
                    problem = error.problem
            if problem:
                problems.add(f"{path.name}:{row.line}", problem)


def source_files(plan: SourcePlan) -> list[Path]:
    """The files that a source reads.

    Raises:
        DataError: if they are not there.
    """
    splits, split = find_splits(plan.path), plan.knobs.split
    if plan.path.is_dir() and split == "all":
        return [file for files in splits.values() for file in files]
    if plan.path.is_dir() and split not in splits:
        raise DataError(f"the folder {plan.path} has no {split} file; it has {', '.join(splits)}")
    return splits[split] if plan.path.is_dir() else splits["train"]


def _part_of(plan: SourcePlan) -> Part | None:
    """Which rows of a source's one file are read, where a column says to which split each belongs; None for all.

    Raises:
        DataError: if the file cannot be read, or none of its rows belongs to the split that was asked for.
    """
    files, split = source_files(plan), plan.knobs.split
    parts = {name: plan.column(name) for name in plan.family.fields} | {"options": plan.knobs.options_column}
    marks = marks_of(files[0], parts) if len(files) == 1 and split != "all" else None
    if marks is None and split not in ("train", "all") and not plan.path.is_dir():
        raise DataError(
            f"split = {split} asks for a folder with such files, or a file whose column split says so of its rows, but "
            f"{plan.path} is none"
        )
    if marks is None or (plan.path.is_dir() and len(find_splits(plan.path)) > 1):
        return None
    if split not in marks.splits:
        raise DataError(
            f"none of the rows of {plan.path} is marked as {split}; there are {', '.join(sorted(marks.splits))}"
        )
    return Part(marks.column, split)


def _check_columns(plan: SourcePlan, seen: Iterable[str]) -> None:
    """A column that no row has is one error, and not one for each row."""
    known = list(seen)
    wanted = {name: plan.column(name) for name in plan.family.fields if name not in plan.knobs.constants}
    if plan.knobs.options_column:
        wanted["options_column"] = plan.knobs.options_column
    for name, column in wanted.items():
        if known and column not in known:
            hint = f"fields: {{{name}: COLUMN}}" if name in plan.family.fields else "options_column: COLUMN"
            raise DataError(
                f"{plan.where}: {plan.path} has no column {column!r} for {name}.{nearest(column, known)} "
                f"It has {', '.join(known[:20])}. Name the right one, as in {hint}"
            )


def _fields(plan: SourcePlan, row: Mapping[str, Any]) -> Fields:
    """The fields of a row as text, and its options.

    Raises:
        RowError: with the column, the value and what was expected.
    """
    values = dict(plan.knobs.constants)
    words = plan.knobs.options
    for name, field in plan.family.fields.items():
        if name not in values:
            column = plan.column(name)
            if column not in row:
                raise RowError(MISSING, f"the row has no key {column!r}")
            values[name] = _text(row[column], field.kind, column)
    answer = plan.family.answer
    options: list[str] = []
    if words is not None:
        if values[answer] not in words:
            possible = ", ".join(map(repr, words))
            raise RowError(
                "not an option",
                f"key {plan.column(answer)!r} is {show(values[answer])}, which is no option; possible: {possible}",
            )
        values[answer] = words[values[answer]]
        options = list(dict.fromkeys(words.values()))
    elif plan.knobs.options_column:
        options = _own_options(row, plan.knobs.options_column, values[answer])
    return Fields(values, options)


def _own_options(row: Mapping[str, Any], column: str, answer: str) -> list[str]:
    given = row.get(column)
    if not isinstance(given, list) or len(given) < 2:
        raise RowError("bad options", f"key {column!r} is {show(given)}, expected a list of at least two answers")
    options = list(dict.fromkeys(_text(option, "text", column) for option in given))
    if answer not in options:
        raise RowError("not an option", f"the answer is {show(answer)}, which is not in key {column!r}: {show(given)}")
    return options


def _text(value: Any, kind: str, column: str) -> str:
    if kind == "json" and not isinstance(value, str) and value is not None:
        return json.dumps(value, ensure_ascii=False, default=str)
    if kind == "turns" and isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        value = "\n".join(value)
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        expected = {"text": "text", "turns": "text or a list of texts", "json": "text or an object"}[kind]
        raise RowError(f"not {kind}", f"key {column!r} is {show(value)}, expected {expected}")
    text = value.strip()
    if not text:
        raise RowError("empty", f"key {column!r} is empty, expected text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("invalid text", f"key {column!r} holds half a surrogate pair: {show(text)}") from None
    return text
