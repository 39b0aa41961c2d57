"""The first pass over the files: every row read and checked, nothing tokenised. Which rows are bad, which are equal,
and which stand on which side. It keeps eight bytes of each row's content and its place, never the content.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from microplane.config.knobs import DataKnobs
from microplane.data.mixtures.render import EVERY, Progress, mixture_splits
from microplane.data.mixtures.spec import is_mixture
from microplane.data.preparing.holdout import RowClasses, split_off
from microplane.data.reading.bad_rows import NoLabel, Problems, RowError
from microplane.data.reading.formats import Example, recognise
from microplane.data.reading.read import find_splits, read_rows
from microplane.data.rendering.interface import RowFormat
from microplane.errors import DataError

FIRST = 100  # rows whose keys decide the format
REPORTED = 5  # pairs of equal rows that are named

ReadFormat = Callable[[Sequence[Mapping[str, Any]], str, str], RowFormat]
"""First rows of a file, its name for errors, and `data.format` -> how its rows are read."""


@dataclass
class Split:
    """The files of one split and what the first pass found in them."""

    name: str
    files: list[Path]
    format: RowFormat
    problems: Problems = field(default_factory=Problems)
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # (rows,) of the contents of good rows
    sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (rows,) characters
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # (rows, 2) file number, line
    classes: RowClasses = field(default_factory=RowClasses)  # of rows with labels
    unlabelled: int = 0  # rows that say that they have no label

    def where(self, row: int) -> str:
        file, line = self.places[row]
        return f"{self.files[file].name}:{line}"

    @property
    def duplicates(self) -> int:
        """Rows that repeat an earlier one."""
        return len(self.hashes) - len(np.unique(self.hashes))

    @property
    def label(self) -> str:
        return self.files[0].name if len(self.files) == 1 else f"{self.files[0].name} and {len(self.files) - 1} more"


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
            splits[name] = files.get(name) or files["train"]
    return splits


def _splits(name: str, knobs: DataKnobs, progress: Progress | None, hold_out: bool) -> dict[str, list[Path]]:
    path = Path(name).expanduser()
    return mixture_splits(path, knobs, hold_out, progress) if is_mixture(path) else find_splits(path)


def check_split(
    name: str, files: list[Path], knobs: DataKnobs, progress: Progress | None, read_format: ReadFormat
) -> Split:
    """Read and check all rows of one split.

    Raises:
        DataError: if a file cannot be read, its format is not recognised, or it holds bad rows and
            `knobs.skip_bad_rows` is off. All bad rows are in the message, as far as it is readable.
    """
    split = Split(name, files, _format(files, knobs, read_format))
    hashes, sizes, places = array("Q"), array("q"), array("q")
    for count, (file, line, example) in enumerate(examples(split, knobs), 1):
        hashes.append(example.hash())
        sizes.append(example.characters)
        places.extend((file, line))
        split.classes.add(example.labels)
        if progress and count % EVERY == 0:
            progress(f"checking {split.label}", count, None)
    split.hashes = np.array(hashes, np.uint64)
    split.sizes = np.array(sizes, np.int64)
    split.places = np.array(places, np.int64).reshape(-1, 2)
    if split.problems.total and not knobs.skip_bad_rows:
        raise split.problems.error(split.label, split.problems.total + len(hashes))
    return split


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
    read_format: ReadFormat = recognise,
) -> FirstPass:
    """Read and check all files, and split validation rows off if there are none and `hold_out` is set.

    Raises:
        DataError: see `check_split`; also for too few rows.
    """
    splits = {name: check_split(name, paths, knobs, progress, read_format) for name, paths in files.items()}
    for split in splits.values():
        _refuse_empty(split)
    if "validation" in splits or not hold_out:
        return FirstPass.of(splits)
    whole = splits["train"]
    held_out = split_off(whole.hashes, knobs.validation_share, knobs.validation_rows, whole.classes)
    splits["train"] = _part(whole, ~held_out)
    splits["validation"] = replace(_part(whole, held_out), name="validation", problems=Problems(), unlabelled=0)
    return FirstPass.of(splits, held_out)


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


def examples(split: Split, knobs: DataKnobs) -> Iterator[tuple[int, int, Example]]:
    """File number, line and example of each good row, in order. Bad ones are added to `split.problems`, those without a
    label counted in `split.unlabelled`."""
    left = knobs.limit if split.name == "train" and knobs.limit else None
    for number, file in enumerate(split.files):
        for row in read_rows(file, split.format.keys):
            if left == 0:
                return
            where = f"{file.name}:{row.line}"
            if row.notice:
                split.problems.notice(where, row.notice)
            if row.values is None:
                if row.problem:
                    split.problems.add(where, row.problem)
                continue
            try:
                example = split.format.example(row.values, where)
            except RowError as error:
                split.problems.add(where, error.problem)
                continue
            except NoLabel:
                split.unlabelled += 1
                continue
            if left is not None:
                left -= 1
            yield number, row.line, example


def _format(files: list[Path], knobs: DataKnobs, read_format: ReadFormat) -> RowFormat:
    """The format of the first file. Rows of others that differ are bad rows.

    Raises:
        DataError: also if no row can be read at all.
    """
    problems = Problems()
    first = []
    for row in read_rows(files[0]):
        if row.problem:
            problems.add(f"{files[0].name}:{row.line}", row.problem)
        elif row.values is not None:
            first.append(row.values)
        if len(first) >= FIRST or problems.total >= 10_000:
            break
    if not first:
        if problems.total:
            raise problems.error(files[0].name, problems.total)
        raise DataError(f"{files[0]} holds no rows")
    return read_format(first, files[0].name, knobs.format)


def overlap(train: Split, other: Split) -> Overlap:
    """Rows of `other` whose content stands in `train`."""
    shared = np.flatnonzero(np.isin(other.hashes, train.hashes))
    pairs = []
    for row in islice(shared.tolist(), REPORTED):
        twin = int(np.flatnonzero(train.hashes == other.hashes[row])[0])
        pairs.append(f"{train.where(twin)} = {other.where(row)}")
    return Overlap(len(shared), tuple(pairs))
