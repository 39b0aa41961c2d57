"""The first pass over the files: every row read and checked, nothing tokenised. Which rows are bad, which are equal,
and which stand on which side. It keeps eight bytes of each row's content and its place, never the content.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from microplane.config.knobs import DataKnobs
from microplane.data.mixtures.render import EVERY, Progress, mixture_splits
from microplane.data.mixtures.spec import is_mixture
from microplane.data.preparing.holdout import split_off
from microplane.data.preparing.split import Split, examples, filled
from microplane.data.reading.bad_rows import Problems
from microplane.data.reading.columns import no_column
from microplane.data.reading.formats import OPTIONAL, TEXT, recognise
from microplane.data.reading.hub_rows import hub_splits, is_on_hub
from microplane.data.reading.marked import Marks, Part, marks_of, rows_of
from microplane.data.reading.read import SPLITS, find_splits
from microplane.data.reading.values import listed
from microplane.data.rendering.interface import RowFormat
from microplane.data.tokenizers.normaliser import UnicodeForm
from microplane.errors import DataError
from microplane.models.configs.head import TASKS

FIRST = 100  # rows whose keys decide the format
REPORTED = 5  # pairs of equal rows that are named

ReadFormat = Callable[[Sequence[Mapping[str, Any]], str, DataKnobs], RowFormat]
"""Rows that show which columns there are, a name for errors, and the knobs -> how rows are read."""


def _as_written(rows: Sequence[Mapping[str, Any]], file: str, knobs: DataKnobs) -> RowFormat:
    """How rows are read where it is not known for which model."""
    return recognise(rows, file, knobs.format, knobs.fields, knobs.no_label)


def files_of(knobs: DataKnobs, progress: Progress | None = None) -> dict[str, list[Path]]:
    """The files of each split: those that the knobs name, else those in the folder, or rendered from a mixture.

    Raises:
        DataError: if there are none.
    """
    if not knobs.train:
        raise DataError("no data given; expected a file or a folder, as in: microplane train MODEL DATA")
    splits = _splits(knobs.train, knobs, progress, hold_out=not knobs.validation)
    for name, given in (("validation", knobs.validation), ("test", knobs.test)):
        if given:
            files = _splits(given, knobs, progress, hold_out=False)
            if len(files) > 1 and name not in files and _marks(files["train"], knobs):
                raise DataError(f"{given}: none of its rows is marked as {name}; there are {', '.join(files)}")
            splits[name] = files.get(name) or files["train"]
    return splits


def _splits(name: str, knobs: DataKnobs, progress: Progress | None, hold_out: bool) -> dict[str, list[Path]]:
    path = Path(name).expanduser()
    if is_mixture(path):
        return mixture_splits(path, knobs, hold_out, progress)
    found = hub_splits(name, progress) if is_on_hub(name) else find_splits(path)
    marks = _marks(found["train"], knobs) if len(found) == 1 else None
    return {split: found["train"] for split in SPLITS if split in marks.splits} if marks else found


def _marks(files: Sequence[Path], knobs: DataKnobs) -> Marks | None:
    """How the rows of one file are marked. Shards are one split each."""
    return marks_of(files[0], knobs.fields) if len(files) == 1 else None


def check_split(
    name: str,
    files: list[Path],
    knobs: DataKnobs,
    progress: Progress | None,
    read_format: ReadFormat,
    unicode: UnicodeForm = "as-is",
    train: Split | None = None,
    marked: str = "",
) -> Split:
    """Read and check all rows of one split.

    Args:
        train: the training rows, if these are others, to be read in the same way.
        marked: where the file says of each row which split it belongs to, those of this one; by default of `name`.

    Raises:
        DataError: if a file cannot be read, its format is not recognised, or it holds bad rows and
            `knobs.skip_bad_rows` is off. All bad rows are in the message, as far as it is readable.
    """
    marks = _marks(files, knobs)
    part = Part(marks.column, marked or name) if marks else None
    seen = _first_rows(files, part)
    while True:
        form = read_format(seen, files[0].name, _as_trained(knobs, train, seen))
        split = Split(name, files, form, unicode, seen=[*seen], columns=filled(seen), part=part)
        _check_rows(split, knobs, progress)
        if len(split.seen) == len(seen):  # no column begins later
            break
        seen = split.seen
    _refuse_missing(split, knobs)
    if split.problems.total and not knobs.skip_bad_rows:
        raise split.problems.error(split.label, split.problems.total + len(split.hashes))
    return split


def _as_trained(knobs: DataKnobs, train: Split | None, rows: Sequence[Mapping[str, Any]]) -> DataKnobs:
    """The knobs for rows of another file: where these have the columns that training rows with labels are read from,
    such a column is the same part, and no other column is one."""
    columns = getattr(train.format, "columns_of_text", None) if train is not None else None
    there = {key for row in rows for key in row}
    if not columns or not there.issuperset(column for column in columns.values() if column is not None):
        return knobs
    return knobs.model_copy(update={"fields": columns})


def _check_rows(split: Split, knobs: DataKnobs, progress: Progress | None) -> None:
    """Fill in what is known of a split once all its rows were read."""
    hashes, sizes, places = array("Q"), array("q"), array("q")
    for count, (file, line, example) in enumerate(examples(split, knobs), 1):
        hashes.append(example.hash())
        sizes.append(example.characters)
        places.extend((file, line))
        split.classes.add(example.labels)
        split.pairs += bool(example.second_text)
        if len(split.systems) < 2:
            split.systems.add(example.system)
        if progress and count % EVERY == 0:
            progress(f"checking {split.label}", count, None)
    split.hashes = np.frombuffer(hashes, np.uint64)
    split.sizes = np.frombuffer(sizes, np.int64)
    split.places = np.frombuffer(places, np.int64).reshape(-1, 2)


def _refuse_missing(split: Split, knobs: DataKnobs) -> None:
    """Raises: DataError, if `data.fields` names a column that no row has."""
    names = list(dict.fromkeys(key for row in split.seen for key in row))
    for part, column in (knobs.fields or {}).items():
        if column is not None and column not in names and not (split.part and part == "split"):
            raise DataError(no_column(split.label, part, column, names))


@dataclass(frozen=True)
class Overlap:
    """Held-out rows that stand in the training rows too."""

    rows: int
    pairs: tuple[str, ...]  # "train.jsonl:17 = test.jsonl:3"


@dataclass
class FirstPass:
    """All splits. Where validation rows are split off, `held_out` says which rows of the training files they are."""

    splits: dict[str, Split]
    held_out: np.ndarray | None
    overlap: dict[str, Overlap]  # of each split but the training rows, with these

    @classmethod
    def of(cls, splits: dict[str, Split], held_out: np.ndarray | None = None) -> FirstPass:
        """With the overlap looked for."""
        train, others = splits["train"], {name: split for name, split in splits.items() if name != "train"}
        return cls(splits, held_out, {name: overlap(train, split) for name, split in others.items()})

    @property
    def problems(self) -> Problems:
        """Those of all files."""
        found = Problems()
        for split in self.splits.values():
            found.counts.update(split.problems.counts)
            found.first += split.problems.first
            found.notices += split.problems.notices
        return found


def first_pass(
    files: dict[str, list[Path]],
    knobs: DataKnobs,
    progress: Progress | None = None,
    hold_out: bool = True,
    read_format: ReadFormat = _as_written,
    unicode: UnicodeForm = "as-is",
    marked: str = "",
) -> FirstPass:
    """Read and check all files, and split validation rows off if there are none and `hold_out` is set.

    Args:
        unicode: the form that texts are brought into.
        marked: as of `check_split`, for the training rows.

    Raises:
        DataError: see `check_split`; also for too few rows.
    """
    splits: dict[str, Split] = {}
    for name in sorted(files, key=lambda name: name != "train"):
        how = read_format, unicode, splits.get("train"), marked if name == "train" else ""
        splits[name] = check_split(name, files[name], knobs, progress, *how)
        _compare(splits["train"], splits[name])
        if name == "train" and splits[name].format.name in TASKS:  # as which the labels of all files are read
            knobs = knobs.model_copy(update={"task": splits[name].format.name})
    for split in splits.values():
        _refuse_empty(split)
    if hold_out:
        _tell_left(splits, knobs)
    if "validation" in splits or not hold_out:
        return FirstPass.of(splits)
    whole = splits["train"]
    held_out = split_off(whole.hashes, knobs.validation_share, knobs.validation_rows, whole.classes)
    splits["train"] = _part(whole, ~held_out)
    splits["validation"] = replace(
        _part(whole, held_out), name="validation", problems=Problems(), unlabelled=0, rewritten=0
    )
    return FirstPass.of(splits, held_out)


def _compare(train: Split, split: Split) -> None:
    """Note where rows are read in another way than the training rows.

    Raises:
        DataError: for multi-hot rows of another length than the training rows, or where those name classes; for rows
            of one text where those have two, or of two where those have one.
    """
    _refuse_other_texts(train, split)
    known, own = (getattr(one.format, "columns", {}) for one in (train, split))
    if (train.format.name == TEXT) != (split.format.name == TEXT):
        told = f"read as {split.format}, and the training rows as {train.format}: what is measured is another task"
        split.problems.notice(split.label, told)
    elif more := [own[part] for part in OPTIONAL if part in own and part not in known]:
        split.problems.notice(split.label, f"read with {listed(more)}, and no training row has such a column")
    if (wanted := train.format.classes) != (found := split.format.classes):
        said = [f"lists of {len(names)} times 0 or 1" if names else "lists of names" for names in (found, wanted)]
        raise DataError(f"{split.label}: the labels are {said[0]}, expected {said[1]} as in {train.label}")


def _tell_left(splits: Mapping[str, Split], knobs: DataKnobs) -> None:
    """Note rows of the training file that are marked as a split of which other rows were given."""
    train = splits["train"]
    marks = _marks(train.files, knobs) if train.part else None
    taken = {split.part.split for split in splits.values() if split.part and split.files == train.files}
    for name in sorted(marks.splits - taken) if marks else ():
        train.problems.notice(train.label, f"its rows marked as {name} are not used: others were given to that end")


def _refuse_other_texts(train: Split, split: Split) -> None:
    """A second text that only some training rows have may well be nowhere else."""
    texts = [getattr(one.format, "columns_of_text", {}) for one in (train, split)]
    if not all(texts) or 0 < train.pairs < len(train.hashes):
        return
    if len({one["text_pair"] is None for one in texts}) > 1:
        read = [" and ".join(repr(one[part]) for part in ("text", "text_pair") if one[part]) for one in texts]
        raise DataError(
            f"{split.label}: the text is read from {read[1]}, and in {train.label} from {read[0]}. Give the columns "
            "the same names in all files"
        )


def _refuse_empty(split: Split) -> None:
    """Raises: DataError, for a split without a row that can be used."""
    if len(split.hashes):
        return
    if split.unlabelled and not split.problems.total:
        raise DataError(
            f"{split.label}: each of its {split.unlabelled:,} rows says that it has no label. Leave the file out, or "
            "say what is a label with --set data.no_label=[...]"
        )
    raise split.problems.error(split.label, split.problems.total + split.unlabelled)


def _part(split: Split, rows: np.ndarray) -> Split:
    """Some rows of a split, by a mask."""
    hashes, sizes, places = split.hashes[rows], split.sizes[rows], split.places[rows]
    return replace(split, hashes=hashes, sizes=sizes, places=places, classes=split.classes.of(rows))


def _first_rows(files: Sequence[Path], part: Part | None = None) -> list[Mapping[str, Any]]:
    """The first rows of the first file, and one of each other.

    Raises:
        DataError: if no row can be read at all.
    """
    problems = Problems()
    first = _rows_of(files[0], FIRST, problems, part)
    if not first:
        if problems.total:
            raise problems.error(files[0].name, problems.total)
        raise DataError(f"{files[0]} holds no rows")
    return first + [row for file in files[1:] for row in _rows_of(file, 1, problems)]


def _rows_of(file: Path, count: int, problems: Problems, part: Part | None = None) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for row in rows_of(file, part):
        if row.problem:
            problems.add(f"{file.name}:{row.line}", row.problem)
        elif row.values is not None:
            found.append(row.values)
        if len(found) >= count or problems.total >= 10_000:
            break
    return found


def overlap(train: Split, other: Split) -> Overlap:
    """Rows of `other` whose content stands in `train`."""
    shared = np.flatnonzero(np.isin(other.hashes, train.hashes))
    pairs = []
    for row in islice(shared.tolist(), REPORTED):
        twin = int(np.flatnonzero(train.hashes == other.hashes[row])[0])
        pairs.append(f"{train.where(twin)} = {other.where(row)}")
    return Overlap(len(shared), tuple(pairs))
