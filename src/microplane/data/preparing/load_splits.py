"""Files -> tokenised splits, in a cache that is found again: the same files, knobs and tokenizer are tokenised once."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from microplane.cache.entries import hold
from microplane.config.knobs import DataKnobs
from microplane.data.preparing.first_pass import Progress, files_of
from microplane.data.preparing.summary import DataSummary
from microplane.data.preparing.tokenise import build
from microplane.data.rendering.denoising_dataset import DenoisedDataset, denoised
from microplane.data.row_kind import TEXT, Shape
from microplane.data.store import Stored, TokenDataset
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.errors import DataError
from microplane.files import cache_dir

__all__ = ["DataSummary", "Splits", "TokenDataset", "load_rows", "load_splits"]

Dataset = TokenDataset | DenoisedDataset
VERSION = 3  # of what is stored and of all code that decides it; raise it when either changes


@dataclass
class Splits:
    """All that a run trains on and measures with."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    summary: DataSummary


def load_splits(
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
    shape: Shape = TEXT,
    names: tuple[str, ...] = (),
) -> Splits:
    """Read, check, render and tokenise the data, or find it in the cache.

    Args:
        shape: what rows the model takes.
        names: of the classes, where a task head has them already.
        progress: is called with what is being done, rows done, and rows in all (None if not known yet).

    Raises:
        DataError: for files that cannot be read, bad rows (see `knobs.skip_bad_rows`), too few rows, rows without
            anything to train on, or a cache that cannot be written.
    """
    sets, summary = _load(files_of(knobs, progress), knobs, tokenizer, progress, shape=shape, names=names)
    _refuse_unknown(summary, knobs)
    if shape.kind == "pairs" and summary.format.split()[0] == "text":
        seen = {name: denoised(rows, knobs, tokenizer, shape.start or 0) for name, rows in sets.items()}
        return Splits(seen["train"], seen["validation"], seen.get("test"), summary)
    return Splits(sets["train"], sets["validation"], sets.get("test"), summary)


def load_rows(
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
    shape: Shape = TEXT,
    names: tuple[str, ...] = (),
) -> TokenDataset:
    """All rows of a file, to measure on; of a folder with splits, its test rows or else its validation rows.

    Raises:
        DataError: see `load_splits`.
    """
    files = files_of(knobs, progress)
    name = next(name for name in ("test", "validation", "train") if name in files)
    only = {"train": files[name]}
    return _load(only, knobs, tokenizer, progress, hold_out=False, shape=shape, names=names)[0]["train"]


def _load(
    files: dict[str, list[Path]],
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    progress: Progress | None,
    hold_out: bool = True,
    shape: Shape = TEXT,
    names: tuple[str, ...] = (),
) -> tuple[dict[str, TokenDataset], DataSummary]:
    key = _key(files, knobs, tokenizer, hold_out, shape, names)
    folder = cache_dir() / "data" / key
    _held = [hold(path.parent) for paths in files.values() for path in paths]  # a mixture stays while it is read
    found = _open(folder)
    if found and (knobs.skip_bad_rows or not found[1].bad):
        return found
    if not found:
        shutil.rmtree(folder, ignore_errors=True)  # damaged, if there at all
    build(files, knobs, tokenizer, folder, progress, hold_out, shape, names)
    if key != _key(files, knobs, tokenizer, hold_out, shape, names):
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(f"{knobs.train} changed while it was read; run again")
    made = _open(folder)
    if made is None:
        raise DataError(f"the tokenised data in {folder} cannot be read back; is the disk damaged?")
    return made


def _refuse_unknown(summary: DataSummary, knobs: DataKnobs) -> None:
    """Raises: DataError, if too much of the text is unknown to the tokenizer for the model to learn it."""
    rates = {"input": summary.input_unk_rate, "answer": summary.trained_unk_rate}
    if summary.task:
        rates = {"input": summary.unk_rate}
    told = [f"{rate:.1%} of the {what} tokens" for what, rate in rates.items() if rate > knobs.max_unknown]
    if told:
        raise DataError(
            f"{knobs.train}: {' and '.join(told)} are unknown to the model's tokenizer (<unk>), more than "
            f"data.max_unknown = {knobs.max_unknown:g}. The model can neither read nor write what they stand for. "
            "Choose a model whose vocabulary knows this text (bytes do, as in ByT5), or raise data.max_unknown"
        )


def _key(
    files: dict[str, list[Path]],
    knobs: DataKnobs,
    tokenizer: Tokenizer,
    hold_out: bool,
    shape: Shape,
    names: tuple[str, ...],
) -> str:
    """Of all that decides the tokens: files by path, size and time, knobs, tokenizer, and the version of this code."""
    identity = {
        name: [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
        for name, paths in files.items()
    }
    chosen = knobs.model_dump(mode="json", exclude={"train", "validation", "test", "skip_bad_rows", "max_unknown"})
    parts = [
        VERSION,
        hold_out,
        asdict(shape),
        names,
        identity,
        chosen,
        tokenizer.fingerprint,
        tokenizer.chat_template,
        tokenizer.eos_ids,
    ]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _open(folder: Path) -> tuple[dict[str, TokenDataset], DataSummary] | None:
    """What the cache holds, or None if it is not there or not whole."""
    try:
        content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        sets = {}
        for name, values in content["stored"].items():
            tuples = {"files": tuple(values["files"]), "stops": tuple(values["stops"])}
            stored = Stored(**(values | tuples | {"shape": Shape(**values["shape"])}))
            sets[name] = TokenDataset(folder, name, stored)
        return sets, DataSummary(**content["summary"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
