"""Rows that a run was trained on, among those that it is measured on: their figures say what it knows by heart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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
    """Compare the contents of the rows to measure on with those that a run was trained on, as far as its training file
    is still there, and is not too large to be read again; else the files.

    Args:
        run: its folder, or that of its adapter.
        data: of the rows to measure on.
        possible: how these are read.

    Returns:
        None where there is nothing to compare with, as for a model that is no run.
    """
    folder = _run_of(run.expanduser())
    if folder is None:
        return None
    with suppress(MicroplaneError, OSError):
        trained = build(RunKnobs, read_yaml(folder / "run.yaml"), where=str(folder / "run.yaml")).data
        own = folder / Path(trained.train).name
        if not Path(trained.train).expanduser().exists() and own.is_file():
            trained = trained.model_copy(update={"train": str(own)})
        if is_mixture(Path(trained.train)) or is_on_hub(trained.train):
            return None
        known, asked = files_of(trained), files_of(data)
        name = next(name for name in ("test", "validation", "train") if name in asked)
        if _size([*known["train"], *asked[name]]) > MOST_BYTES:
            return _same_file(known["train"], asked[name]) if len(asked) == 1 else None
        rows = _first_pass({"train": asked[name]}, data, possible, unicode, progress, hold_out=False, marked=name)
        hold_out = "validation" not in known
        before = _first_pass({"train": known["train"]}, trained, possible, unicode, progress, hold_out=hold_out)
        found = overlap(before.splits["train"], rows.splits["train"])
        measured = len(rows.splits["train"].hashes)
        return TrainedRows(found.rows, _told(found.rows, measured, found.pairs[0]) if found.rows else "")
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


def _told(rows: int, measured: int, first: str) -> str:
    return f"{rows:,} of {measured:,} rows are rows that this run was trained on, as {first}: {_BY_HEART}"
