"""Classes that a head learned under other names than rows have: it must not say one for the other.

Earlier versions read the classes of a Parquet file of `datasets` as bare numbers, where their names are read now
(data/reading/class_names.py). A run of theirs has heads for 0, 1, 2, or writes these.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from microplane.checkpoints.adapter import read_method
from microplane.config.knobs import DataKnobs
from microplane.data.preparing.first_pass import files_of
from microplane.data.reading.read import named_classes
from microplane.errors import AdapterError, DataError, MicroplaneError, notice
from microplane.inference.pipeline import Pipeline
from microplane.models.contract import Model
from microplane.models.heads import label_names_of
from microplane.runs.asked import CLASS_NAMES

SHOWN = 8  # classes that a message names


def check_classes(adapter: Path, model: Model) -> None:
    """Raises: AdapterError, for an adapter with a head for other classes than the model's, which may be as many."""
    head = read_method(adapter)[1].get("head")
    if head is None or model.task_head is None or head["task"] == "regression":
        return
    theirs, ours = tuple(head["labels"]), label_names_of(model)
    if theirs != ours:
        raise AdapterError(
            f"the head of {adapter} tells {_listed(theirs)} apart, and these rows have {_listed(ours)}: it would say "
            "one class for another. Name them alike, or train on the base, without the adapter"
        )


def check_numbered_classes(loaded: Pipeline, data: DataKnobs) -> None:
    """Of a run of an earlier version, and rows of a Parquet file with names for its classes: say so where the run
    writes text.

    Raises:
        DataError: where its head knows numbers, of which nobody can say whether they are meant by these names.
    """
    about = loaded.about or {}
    if loaded.method is None or about.get(CLASS_NAMES) or "peft" in about:
        return
    known, head = label_names_of(loaded.model), loaded.model.task_head
    found = list[tuple[Path, str, tuple[str, ...]]]()
    with suppress(MicroplaneError, OSError, ValueError, ImportError):  # of files that cannot be read, it is said later
        found = _named(data)
    for path, column, names in found:
        said = f"{path} names the classes of its column {column!r} ({_listed(names)})"
        if head is None:
            notice(f"{said}, and these names are its answers. This run is of an earlier version, which learned numbers")
        elif known and all(name.lstrip("-").isdecimal() for name in known):
            raise DataError(
                f"{said}, and this run, of an earlier version, has a head for {_listed(known)}: whether these are "
                "numbers or names cannot be known. Train it again, or write the rows as JSONL with the labels "
                "that it knows"
            )


def _named(data: DataKnobs) -> list[tuple[Path, str, tuple[str, ...]]]:
    """File, column and names, where these are others than the classes' numbers."""
    chosen = set((data.fields or {}).values())
    return [
        (path, column, names)
        for path in dict.fromkeys(path for files in files_of(data).values() for path in files)
        for column, names in named_classes(path).items()
        if names != tuple(map(str, range(len(names)))) and (not chosen or column in chosen)
    ]


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
