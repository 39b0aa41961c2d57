"""Files -> tokenised splits, in a cache that is found again: the same files, knobs and tokenizer are tokenised once."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Generic, TypeVar

from microplane.cache.entries import hold
from microplane.config.knobs import DataKnobs
from microplane.data.mixtures.render import Progress
from microplane.data.preparing.first_pass import files_of
from microplane.data.preparing.summary import DataSummary
from microplane.data.preparing.tokenise import tokenise_files
from microplane.data.preparing.unread import told_unread
from microplane.data.rendering.interface import Candidates, DataObjective
from microplane.data.store import Dataset, SplitInfo, TokenDataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError
from microplane.files import cache_dir

O = TypeVar("O", bound=DataObjective)  # noqa: E741 - what is learnt from the rows
VERSION = 17  # of what is stored and of all code that decides it; raise it when either changes


@dataclass
class Splits(Generic[O]):
    """All that a run trains on and measures with."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    summary: DataSummary
    objective: O


def load_splits(
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    candidates: Candidates[O],
    progress: Progress | None = None,
    seed: int = 0,
) -> Splits[O]:
    """Read, check, render and tokenise the data, or find it in the cache.

    Args:
        candidates: what the model may be trained for; the format of the rows decides.
        progress: is called with what is being done, rows done, and rows in all (None if not known yet).
        seed: of what is drawn anew from the training rows in each epoch. Rows that are measured on are drawn with
            seed 0 always, so that runs of different seeds are measured on the same.

    Raises:
        DataError: for files that cannot be read, bad rows (see `knobs.skip_bad_rows`), too few rows, rows without
            anything to train on, or a cache that cannot be written.
        ConfigError: if the user asked for an objective that does not fit these rows.
    """
    sets, summary = _load(files_of(knobs, progress), knobs, tokenizer, progress, candidates)
    _refuse_unknown(summary, knobs)
    objective = candidates.objective(summary.format_name)
    seen = {name: objective.view(rows, knobs, tokenizer, seed if name == "train" else 0) for name, rows in sets.items()}
    return Splits(seen["train"], seen["validation"], seen.get("test"), summary, objective)


def load_rows(
    knobs: DataKnobs, tokenizer: Tokenizer, candidates: Candidates[O], progress: Progress | None = None
) -> tuple[Dataset, O, DataSummary]:
    """All rows of a file, to measure on, what is measured, and their facts; of a folder with splits, its test rows or
    else its validation rows.

    Raises:
        DataError: see `load_splits`.
    """
    files = files_of(knobs, progress)
    name = next(name for name in ("test", "validation", "train") if name in files)
    sets, summary = _load({"train": files[name]}, knobs, tokenizer, progress, candidates, hold_out=False, marked=name)
    objective = candidates.objective(summary.format_name)
    return objective.view(sets["train"], knobs, tokenizer, 0), objective, summary


def _load(
    files: dict[str, list[Path]],
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    progress: Progress | None,
    candidates: Candidates[DataObjective],
    hold_out: bool = True,
    marked: str = "",
) -> tuple[dict[str, TokenDataset], DataSummary]:
    key = _key(files, knobs, tokenizer, hold_out, candidates, marked)
    folder = cache_dir() / "data" / key
    _held = [hold(path.parent) for paths in files.values() for path in paths]  # a mixture stays while it is read
    found = _open(folder)
    if found and (knobs.skip_bad_rows or not found[1].bad):
        return found
    if not found:
        shutil.rmtree(folder, ignore_errors=True)  # damaged, if there at all
    tokenise_files(files, knobs, tokenizer, folder, progress, candidates, hold_out, marked)
    if key != _key(files, knobs, tokenizer, hold_out, candidates, marked):
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(f"{knobs.train} changed while it was read; run again")
    found = _open(folder)
    if found is None:
        raise DataError(f"the tokenised data in {folder} cannot be read back; is the disk damaged?")
    return found


def _refuse_unknown(summary: DataSummary, knobs: DataKnobs) -> None:
    """Raises: DataError, if too much of the text is unknown to the tokenizer for the model to learn it."""
    rates = {"input": summary.input_unk_rate, "answer": summary.trained_unk_rate}
    if summary.task:
        rates = {"input": summary.unk_rate}
    above = [f"{rate:.1%} of the {side} tokens" for side, rate in rates.items() if rate > knobs.max_unknown]
    if above:
        raise DataError(
            f"{knobs.train}: {' and '.join(above)} are unknown to the model's tokenizer (<unk>), more than "
            f"data.max_unknown = {knobs.max_unknown:g}. The model can neither read nor write what they stand for. "
            "Choose a model whose vocabulary knows this text (bytes do, as in ByT5), or raise data.max_unknown"
        )


def _key(
    files: dict[str, list[Path]],
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    hold_out: bool,
    candidates: Candidates[DataObjective],
    marked: str,
) -> str:
    """Of all that decides the tokens: files by path, size and time, knobs, tokenizer, and the version of this code.

    A path counts as it is spelled too: rows are read again from there, which from another folder is another file.
    """
    identity = {
        name: [(str(path), str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
        for name, paths in files.items()
    }
    chosen = knobs.model_dump(mode="json", exclude={"train", "validation", "test", "skip_bad_rows", "max_unknown"})
    parts = [
        VERSION,
        hold_out,
        marked,
        told_unread(knobs),
        candidates.key(),
        candidates.classes,
        identity,
        chosen,
        tokenizer.fingerprint,
        tokenizer.eos_ids,
    ]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _open(folder: Path) -> tuple[dict[str, TokenDataset], DataSummary] | None:
    """What the cache holds, or None if it is not there or not whole."""
    try:
        content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        sets = {}
        for name, values in content["splits"].items():
            tuples = {"files": tuple(values["files"]), "stops": tuple(values["stops"])}
            sets[name] = TokenDataset(folder, name, SplitInfo(**(values | tuples)))
        return sets, DataSummary(**content["summary"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
