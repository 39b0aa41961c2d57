"""The rows of a comparison: copied into its folder once, so that every trial reads the same, and no trial that chooses
anything sees the test rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from microplane.comparison.search import PARTS
from microplane.config.knobs import DataKnobs
from microplane.data.mixtures.spec import is_mixture
from microplane.data.preparing.first_pass import check_split, files_of
from microplane.data.preparing.holdout import split_off
from microplane.data.preparing.split import Split
from microplane.data.reading.read import read_rows
from microplane.errors import DataError
from microplane.files import file_sha256, write_aside
from microplane.runs.inline_data import InlineData, as_json
from microplane.runs.prepare import Opened

LEAST_ROWS = 32  # for the training on parts of them
TEST_SHARE = 0.2  # of the rows, where none are given for the test
MOST_TEST_ROWS = 1_000


@dataclass(frozen=True)
class ComparisonRows:
    """Files of a comparison's rows, and where they come from."""

    train: str
    validation: str
    test: str
    told: str  # how the test rows were chosen
    source: str  # checksum of the files that were given
    parts: dict[str, str] = field(default_factory=dict)  # by percent: each holds the smaller ones
    shares: dict[str, float] = field(default_factory=dict)  # of the training rows that they hold, by percent


def copy_rows(opened: Opened, folder: Path, learning_curve: bool = False) -> ComparisonRows:
    """Write train.jsonl, validation.jsonl and test.jsonl.

    Test rows that nobody gave are cut off the training rows by a hash of their content, of each class the same share;
    then validation rows, as a run would do it.

    Args:
        learning_curve: whether parts of the training rows are written too, train-25.jsonl and train-50.jsonl.

    Raises:
        DataError: for rows that cannot be read or are too few, or a mixture, which has no rows of its own.
    """
    knobs = opened.config.data
    if is_mixture(Path(knobs.train).expanduser()):
        raise DataError(f"{knobs.train} is a mixture: comparisons need rows in files. See `microplane mixture`")
    files = files_of(knobs)
    splits = {name: _checked(name, paths, opened) for name, paths in files.items()}
    parts = {name: np.ones(len(split.hashes), np.bool_) for name, split in splits.items()}
    given, train = "test" in splits, splits["train"]
    if not given:
        held = split_off(train.hashes, TEST_SHARE, MOST_TEST_ROWS, train.classes)
        splits["test"], parts["test"], parts["train"] = train, held, ~held
    if "validation" not in splits:
        held = _held(splits["train"], parts["train"], knobs.validation_share, knobs.validation_rows)
        splits["validation"], parts["validation"], parts["train"] = train, held, parts["train"] & ~held
    smaller = _smaller(splits["train"], parts["train"]) if learning_curve else {}
    splits |= {f"train-{percent}": train for percent in smaller}
    parts |= {f"train-{percent}": chosen for percent, chosen in smaller.items()}
    rows = int(parts["train"].sum())
    written = {name: _write(folder / f"{name}.jsonl", splits[name], parts[name]) for name in splits}
    cut = f"{TEST_SHARE:.0%} of the rows, at most {MOST_TEST_ROWS:,}, cut off by a hash of their content"
    told = f"{knobs.test or knobs.train}, as given" if given else cut
    return ComparisonRows(
        written["train"],
        written["validation"],
        written["test"],
        told,
        source_of(knobs),
        {percent: written[f"train-{percent}"] for percent in smaller},
        {percent: int(chosen.sum()) / rows for percent, chosen in smaller.items()},
    )


def _held(split: Split, among: np.ndarray, share: float, most: int) -> np.ndarray:
    """Of the rows of a mask those that are held out, as a mask over all."""
    held = np.zeros(len(among), np.bool_)
    held[among] = split_off(split.hashes[among], share, most, split.classes.of(among))
    return held


def _smaller(split: Split, among: np.ndarray) -> dict[str, np.ndarray]:
    """Of the rows of a mask the parts of the learning curve, by percent, each within the next larger one; with at least
    one row of each class, for no run is measured on a class that it never saw.

    Raises:
        DataError: if there are too few rows.
    """
    count = int(among.sum())
    if count < LEAST_ROWS:
        raise DataError(f"--learning-curve needs {LEAST_ROWS} training rows at least, and there are {count}")
    found, whole = {}, 100
    for percent in sorted(PARTS, reverse=True):
        larger = among
        among = _held(split, among, percent / whole, count)
        among |= _of_missing(split, among, larger)
        found[str(percent)], whole = among, percent
    return found


def _of_missing(split: Split, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Of the rows of a mask the first ones of classes that no row of its part has, as a mask over all."""
    classes, found = split.classes, np.zeros(len(whole), np.bool_)
    had, there = classes.of(part).counts(), classes.of(whole).counts()
    missing = {classes.numbers[name] for name, count in there.items() if count and not had[name]}
    ends = np.cumsum(classes.sizes)
    for row in np.flatnonzero(whole & ~part).tolist() if missing else ():
        own = missing.intersection(classes.flat[int(ends[row]) - classes.sizes[row] : int(ends[row])])
        found[row] = bool(own)
        missing -= own
    return found


def source_of(knobs: DataKnobs) -> str:
    """A checksum of the files that hold the rows."""
    files = files_of(knobs)
    sums = [(name, [file_sha256(path) for path in paths]) for name, paths in sorted(files.items())]
    return sha256(repr(sums).encode()).hexdigest()


def _checked(name: str, files: list[Path], opened: Opened) -> Split:
    return check_split(name, files, opened.config.data, None, opened.possible.read_format, opened.tokenizer.unicode)


def _write(path: Path, split: Split, chosen: np.ndarray) -> str:
    wanted = {(int(file), int(line)) for file, line in split.places[chosen]}
    write_aside(path, InlineData.of_rows(_raw(split, wanted)).content)
    return str(path.absolute())


def _raw(split: Split, wanted: set[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Rows as they stand in their files, as far as JSON holds that."""
    for number, file in enumerate(split.files):
        for row in read_rows(file):
            if (number, row.line) in wanted and row.values is not None:
                yield as_json(row.values)
