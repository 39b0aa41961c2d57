"""Rows that a run was trained on, among those that it is measured on: their figures say what it knows by heart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microplane.config.build import build, read_yaml
from microplane.config.knobs import DataKnobs, RunKnobs
from microplane.data.mixtures.render import Progress
from microplane.data.mixtures.spec import is_mixture
from microplane.data.preparing.first_pass import FirstPass, files_of, first_pass, overlap
from microplane.data.reading.hub_rows import is_on_hub
from microplane.data.tokenizers.normaliser import UnicodeForm
from microplane.errors import MicroplaneError
from microplane.objectives.select import AnyCandidates

MOST_BYTES = 2**28  # of both files together; reading more takes too long for what it tells


@dataclass(frozen=True)
class TrainedRows:
    """How many of the rows are such, and a sentence on them."""

    rows: int | None  # None: not counted
    warning: str


def trained_rows(
    run: Path,
    data: DataKnobs,
    possible: AnyCandidates,
    unicode: UnicodeForm,
    progress: Progress | None = None,
) -> TrainedRows | None:
    """Compare the contents of the rows to measure on with those that a run, and those that it began from, were trained
    on, as far as their training files are still there, and are not too large to be read again; else the files.

    Args:
        run: its folder, or that of its adapter.
        data: of the rows to measure on.
        possible: how these are read.

    Returns:
        None where there is nothing to compare with, as for a model that is no run.
    """
    with suppress(MicroplaneError, OSError):
        line = list(_line_of(run.expanduser()))
        asked = files_of(data) if line else {}
        read = {folder: files for folder, own in line if own is not None and (files := _files(own)) is not None}
        if not read:
            return None
        name = next(name for name in ("test", "validation", "train") if name in asked)
        known = [file for files in read.values() for file in files["train"]]
        if _size([*known, *asked[name]]) > MOST_BYTES:
            return _same_file(known, asked[name]) if len(asked) == 1 else None
        rows = _first_pass({"train": asked[name]}, data, possible, unicode, progress, hold_out=False, marked=name)
        measured, found, pairs = rows.splits["train"], np.zeros(0), list[str]()
        for folder, own in line:
            if own is not None and folder in read:
                hold_out, files = "validation" not in read[folder], {"train": read[folder]["train"]}
                before = _first_pass(files, own, possible, unicode, progress, hold_out=hold_out).splits["train"]
                pairs += overlap(before, measured).pairs
                found = np.union1d(found, np.flatnonzero(np.isin(measured.hashes, before.hashes)))
        whole = len(read) == len(line)
        how = len(found), len(measured.hashes), len(line) > 1, whole
        return TrainedRows(len(found) if whole else None, _told(*how, pairs[0]) if len(found) else "")
    return None


def _line_of(run: Path) -> Iterator[tuple[Path, DataKnobs | None]]:
    """The folder of a run and of those that it began from, each with how it read its rows; None where that is gone."""
    folder, seen = _run_of(run), set[Path]()
    while folder is not None and folder not in seen:
        seen.add(folder)
        knobs = build(RunKnobs, read_yaml(folder / "run.yaml"), where=str(folder / "run.yaml"))
        own, begun = folder / Path(knobs.data.train).name, Path(knobs.model.adapter or knobs.model.name).expanduser()
        there = Path(knobs.data.train).expanduser().exists() or not own.is_file()
        yield folder, knobs.data if there else knobs.data.model_copy(update={"train": str(own)})
        moved = folder.parent / begun.parent.name  # of runs that were moved together
        folder = _run_of(begun) or (_run_of(moved) if begun.name == "adapter" else None)
        if folder is None and knobs.model.adapter:
            yield begun, None


def _files(data: DataKnobs) -> dict[str, list[Path]] | None:
    """Of each split; None where they are not to be read again."""
    with suppress(MicroplaneError, OSError):
        return None if is_mixture(Path(data.train)) or is_on_hub(data.train) else files_of(data)
    return None


def _first_pass(
    files: dict[str, list[Path]],
    data: DataKnobs,
    possible: AnyCandidates,
    unicode: UnicodeForm,
    progress: Progress | None,
    hold_out: bool,
    marked: str = "",
) -> FirstPass:
    skipping = data.model_copy(update={"skip_bad_rows": True})  # what is bad was told, or is no matter here
    return first_pass(files, skipping, progress, hold_out, possible.read_format, unicode, marked)


def _run_of(run: Path) -> Path | None:
    return next((one for one in (run, run.parent) if (one / "run.yaml").is_file()), None)


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _same_file(known: Sequence[Path], asked: Sequence[Path]) -> TrainedRows | None:
    file = next((one for one in asked if any(other.samefile(one) for other in known)), None)
    return TrainedRows(None, f"{file} is what this run was trained on: {_BY_HEART}") if file else None


_BY_HEART = (
    "the figures say how well it knows them by heart. What it can do is seen on rows that it was not trained on, as in "
    "its report"
)


def _told(rows: int, measured: int, several: bool, whole: bool, first: str) -> str:
    least, others = "" if whole else "at least ", ", or one that it began from," if several else ""
    return (
        f"{least}{rows:,} of {measured:,} rows are rows that this run{others} was trained on, as {first}: {_BY_HEART}"
    )
