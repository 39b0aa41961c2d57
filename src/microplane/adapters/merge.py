"""Merge an adapter into its base: a plain Hugging Face folder, and proof that it computes the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from microplane.adapters.asked import asked_as, settings_of_writing, without_chat, written_otherwise
from microplane.adapters.card import card_of
from microplane.adapters.export import check_free, write_folder, written_dtype
from microplane.adapters.other_tokenizer import SENTENCES
from microplane.checkpoints.attach_saved import adapter_folder, trained_on
from microplane.data.reading.read import first_texts
from microplane.errors import AdapterError, CheckpointError, DataError, check_type
from microplane.evaluation.probe import largest_difference, probe_file, probe_logits, probe_states, read_probe
from microplane.files import object_in
from microplane.inference.pipeline import Pipeline, load
from microplane.models.contract import Model
from microplane.objectives.base import ProbeRow

TEXT_ROWS = 50  # of the training file, which other tools' tokenizer is tried on


@dataclass(frozen=True)
class Merged:
    folder: Path
    dtype: torch.dtype
    rows: int
    difference: float  # largest logit difference, merged against unmerged, both in float32
    rounded: float  # the same after the merged weights were rounded to `dtype`
    notices: tuple[str, ...] = ()  # what other tools do otherwise, and what to do about it
    trained_base: str | None = None  # "int8" or "nf4", if the adapter was trained on such a base
    from_trained: float | None = None  # then: largest logit difference, merged against the adapter on that base

    def lines(self) -> Iterator[str]:
        name = str(self.dtype).removeprefix("torch.")
        yield f"merged into {self.folder} as {name}"
        yield f"largest logit difference on {self.rows} stored rows: {self.difference:.2e} merged against unmerged"
        if self.rounded != self.difference:
            yield f"after rounding the weights to {name}: {self.rounded:.2e}"
        if self.trained_base:
            yield (
                f"the adapter was trained on the base in {self.trained_base} and is merged into the original one: "
                f"largest logit difference {self.from_trained:.2e} to what was trained"
            )
        yield from self.notices


def merge(
    name: str | Path, out: str | Path, dtype: torch.dtype | None = None, base: str | Path | None = None
) -> Merged:
    """Write base + adapter as a model folder that any tool opens.

    The adapter of a quantised base is merged into the original base in full precision, for what is merged into 4 or 8
    bits would be lost to rounding; how far that is from what was trained is measured.

    Args:
        name: a run's folder, or an adapter's.
        out: the new folder; must not exist, or be empty.
        dtype: of the weights written; otherwise what the base is stored in, and float32 for a quantised base or one
            that is stored in a format that its family fails in.
        base: where the base is, if not where the adapter says.

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
    loaded = load(name, dtype="float32", base=base)
    assert loaded.method is not None
    dtype = written_dtype(loaded, dtype)
    rows = probe_texts(Path(name), loaded)
    before = probed(loaded, rows)
    trained_base = trained_on(loaded.method, loaded.about or {})[0]
    loaded.method.merge(loaded.model)
    difference = largest_difference(before, probed(loaded, rows))
    loaded.model.to(dtype).float()
    rounded = largest_difference(before, probed(loaded, rows))
    card = card_of(name, "hf", loaded.about, loaded.method.name)
    notices = write_folder(loaded, folder, dtype, row_texts(Path(name)), card)
    notices += (*without_chat(loaded), *asked_as(loaded))
    notices += (told,) if (told := written_otherwise(settings_of_writing(loaded))) else ()
    if trained_base == "auto":
        return Merged(folder, dtype, len(rows), difference, rounded, notices)
    merged = probed(loaded, rows)
    del loaded
    apart = largest_difference(probed(load(name, base=base), rows), merged)
    return Merged(folder, dtype, len(rows), difference, rounded, notices, trained_base, apart)


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


def probe_texts(run: Path, loaded: Pipeline) -> list[ProbeRow]:
    """What to compare logits on: the run's stored rows, else a few sentences."""
    return _probe_rows(run) or [ProbeRow(loaded.tokenizer.encode(text)) for text in SENTENCES]


def probed(loaded: Pipeline, rows: Sequence[ProbeRow], model: Model | None = None) -> list[Tensor]:
    """What the model, or another of its kind, says of each row: logits or labels; of an encoder without a head, which
    embeds, the states."""
    model = model or loaded.model
    if model.KIND == "encoder" and model.task_head is None:
        return probe_states(model, rows)
    return probe_logits(loaded.objective, model, rows)


def row_texts(run: Path) -> list[str]:
    """The texts of the first training rows, as they stand in the file; none if it is not there any more."""
    record = object_in(run / "result.json")
    with suppress(LookupError, TypeError, DataError):
        return first_texts(Path(record["run"]["data"]["train"]), TEXT_ROWS)
    return []


def _probe_rows(run: Path) -> list[ProbeRow]:
    with suppress(CheckpointError, KeyError):  # a run whose probe is damaged can be merged all the same
        return read_probe(run)[0] if probe_file(run).is_file() else []
    return []
