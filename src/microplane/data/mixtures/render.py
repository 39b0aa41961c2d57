"""Writing a mixture's rows to files: by request, and for training, where they go the way of all data.

For a run, `train.jsonl` and `validation.jsonl` lie in the cache, under a key of all that decides them.
"""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

from microplane.cache.entries import touch
from microplane.cache.eviction import new_entry
from microplane.config.knobs import DataKnobs
from microplane.data.mixtures import task_templates as instructions
from microplane.data.mixtures.sampler import Mixture, Side, open_mixture
from microplane.data.mixtures.sources import source_files
from microplane.data.mixtures.spec import MixturePlan, read_mixture
from microplane.data.progress import RowProgress
from microplane.errors import DataError
from microplane.files import cache_dir

Progress = RowProgress
EVERY = 200  # rows between two calls of the progress
VERSION = 3  # of the code that decides the rows; raise it when that changes


def materialise(mixture: Mixture, file: Path, rows: int, side: Side = "train", progress: Progress | None = None) -> int:
    """Write rows 0 to `rows` as JSONL, and return how many were there already.

    A file that a killed process left behind is gone on with: whole lines stay, a torn one is written again.

    Raises:
        DataError: if the file holds rows of something else.
    """
    try:
        there = _whole_lines(mixture, file, rows, side) if file.exists() else 0
        with file.open("a", encoding="utf-8") as out:
            for number, row in enumerate(mixture.rows(there, rows, side), there + 1):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                if progress and (number % EVERY == 0 or number == rows):
                    progress(f"rendering {mixture.plan.path.name}", number, rows)
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror or error}") from None
    return there


def _whole_lines(mixture: Mixture, file: Path, rows: int, side: Side) -> int:
    """How many rows the file holds; what is torn behind them is cut off. The first and the last are compared."""
    count = end = 0
    first = last = b""
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            first, last = first or line, line
            count, end = count + 1, end + len(line)
    if count > rows:
        raise DataError(f"{file} holds {count:,} rows, more than the {rows:,} that are asked for; name another file")
    for number, line in {0: first, count - 1: last}.items() if count else ():
        row = next(mixture.rows(number, number + 1, side))
        if line != (json.dumps(row, ensure_ascii=False) + "\n").encode():
            raise DataError(f"{file}: line {number + 1} is not that of {mixture.plan.path}; name another file")
    if end < file.stat().st_size:
        with file.open("rb+") as torn:
            torn.truncate(end)
    return count


def mixture_splits(
    path: Path, knobs: DataKnobs, hold_out: bool = True, progress: Progress | None = None
) -> dict[str, list[Path]]:
    """The files to train on and to validate on; rendered once for a mixture, its files and these knobs.

    With `hold_out`, validation rows come from source rows that are never trained on, nor shown as exemplars.

    Raises:
        ConfigError: see `mixture.open_mixture`.
        DataError: also if the files change meanwhile.
    """
    share = knobs.validation_share if hold_out else 0.0
    sides: tuple[Side, ...] = ("train", "validation") if share else ("train",)
    key = _key(read_mixture(path), share, knobs.validation_rows)
    folder = cache_dir() / "mixtures" / key
    files = {side: folder / f"{side}.jsonl" for side in sides}
    if not all(file.is_file() for file in files.values()):
        shutil.rmtree(folder, ignore_errors=True)  # damaged, if there at all
        mixture = open_mixture(path, share, knobs.validation_rows)
        rows = mixture.plan.knobs.rows
        counts = {"train": rows, "validation": min(knobs.validation_rows, max(1, round(share * rows)))}
        with new_entry(folder, "the mixture's rows", f"{rows:,} rows of {path.name}") as temporary:
            for side in sides:
                materialise(mixture, temporary / f"{side}.jsonl", counts[side], side, progress)
            if key != _key(read_mixture(path), share, knobs.validation_rows):
                raise DataError(f"{path} or a file that it names changed while it was read; run again")
    touch(folder)
    return {side: [file] for side, file in files.items()}


def _key(plan: MixturePlan, share: float, most: int) -> str:
    """Of all that decides the rows: the mixture and its files by path, size and time, the templates, this code."""
    files = [*plan.files, *(file for source in plan.sources for file in source_files(source))]
    templates = [*sorted(instructions.FOLDER.glob("*.yaml")), instructions.STYLES]
    parts = [
        VERSION,
        share,
        most,
        [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files],
        [file.read_text(encoding="utf-8") for file in templates],
    ]
    return sha256(json.dumps(parts).encode()).hexdigest()[:32]
