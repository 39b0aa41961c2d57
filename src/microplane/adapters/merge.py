"""Merge an adapter into its base: a plain Hugging Face folder, and proof that it computes the same."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from microplane.checkpoints.attach_saved import adapter_folder, trained_on
from microplane.checkpoints.tensors import disk_errors
from microplane.errors import AdapterError, CheckpointError, check_type
from microplane.evaluation.probe import largest_difference, probe_file, probe_logits, read_probe
from microplane.files import folder_aside
from microplane.inference.pipeline import Pipeline, load
from microplane.models.files.load import open_checkpoint, save_model
from microplane.objectives.base import ProbeRow

SENTENCES = ("The quick brown fox jumps over the lazy dog.", '{"name": "zest", "rank": 16}', "1, 2, 3, 5, 8, 13, 21")


@dataclass(frozen=True)
class Merged:
    folder: Path
    dtype: torch.dtype
    rows: int
    difference: float  # largest logit difference, merged against unmerged, both in float32
    rounded: float  # the same after the merged weights were rounded to `dtype`
    trained_base: str | None = None  # "int8" or "nf4", if the adapter was trained on such a base
    from_trained: float | None = None  # then: largest logit difference, merged against the adapter on that base


def merge(name: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> Merged:
    """Write base + adapter as a model folder that any tool opens.

    The adapter of a quantised base is merged into the original base in full precision, for what is merged into 4 or 8
    bits would be lost to rounding; how far that is from what was trained is measured.

    Args:
        name: a run's folder, or an adapter's.
        out: the new folder; must not exist, or be empty.
        dtype: of the weights written; otherwise what the base is stored in, and float32 for a quantised base or one
            that is stored in a format that its family fails in.

    Raises:
        AdapterError: no adapter there, a method that cannot be merged, or `out` is taken.
        ModelError: the model's family fails in `dtype`.
    """
    check_type(name, "name", (str, Path), "the path of a run or an adapter")
    check_type(out, "out", (str, Path), "the path of the new folder")
    if dtype is not None:
        check_type(dtype, "dtype", torch.dtype, "a torch.dtype, as torch.bfloat16")
    folder = Path(out)
    source_of(name)
    check_free(folder, "merge")
    loaded = load(name, dtype="float32")
    assert loaded.method is not None
    loaded.model.refuse_format(dtype)
    stored = _stored_dtype(loaded.path)
    dtype = dtype or (torch.float32 if stored in loaded.model.UNSUPPORTED_DTYPES else stored)
    rows = probe_texts(Path(name), loaded)
    before = probe_logits(loaded.objective, loaded.model, rows)
    trained_base = trained_on(loaded.method, loaded.about or {})[0]
    loaded.method.merge(loaded.model)
    difference = largest_difference(before, probe_logits(loaded.objective, loaded.model, rows))
    loaded.model.to(dtype).float()
    rounded = largest_difference(before, probe_logits(loaded.objective, loaded.model, rows))
    _write(loaded, folder, dtype)
    if trained_base == "auto":
        return Merged(folder, dtype, len(rows), difference, rounded)
    merged, objective = probe_logits(loaded.objective, loaded.model, rows), loaded.objective
    del loaded
    apart = largest_difference(probe_logits(objective, load(name).model, rows), merged)
    return Merged(folder, dtype, len(rows), difference, rounded, trained_base, apart)


def source_of(name: str | Path) -> Path:
    """The adapter's folder.

    Raises:
        AdapterError: if there is none.
    """
    source = adapter_folder(Path(name).expanduser())
    if source is None:
        what = "has no adapter" if Path(name).expanduser().exists() else "does not exist"
        raise AdapterError(f"{name} {what}: expected a run's folder, or an adapter's own (also one that peft wrote)")
    return source


def check_free(folder: Path, verb: str) -> None:
    """Raises: AdapterError, if something is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"{folder} exists and is not an empty folder; choose another one to {verb} into")


def probe_texts(run: Path, loaded: Pipeline) -> list[ProbeRow]:
    """What to compare logits on: the run's stored rows, else a few sentences."""
    return _probe_rows(run) or [ProbeRow(loaded.tokenizer.encode(text)) for text in SENTENCES]


def _write(loaded: Pipeline, folder: Path, dtype: torch.dtype) -> None:
    """The whole folder aside, then renamed: a full disk leaves nothing that looks like a model."""
    with folder_aside(folder) as temporary, disk_errors(folder):  # an empty folder gives way
        save_model(loaded.model, temporary, dtype)
        loaded.tokenizer.save(temporary)


def _probe_rows(run: Path) -> list[ProbeRow]:
    with suppress(CheckpointError, KeyError):  # a run whose probe is damaged can be merged all the same
        return read_probe(run)[0] if probe_file(run).is_file() else []
    return []


def _stored_dtype(path: Path) -> torch.dtype:
    stored = open_checkpoint(path).stored.lower()
    return {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "f16": torch.float16}.get(
        stored, torch.float32
    )
