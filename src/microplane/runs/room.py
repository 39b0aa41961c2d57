"""Whether a run finds room: the least memory and disk that it needs, from shapes alone, against what is free."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from microplane.cpu_memory import can_cache
from microplane.errors import MicroplaneError
from microplane.forecast.memory import TrainingBytes
from microplane.hardware import free_memory, keep_no_large_pieces
from microplane.methods import trainable_parameters
from microplane.nn.quantised import weight_count
from microplane.report.words import size
from microplane.runs.prepare import Prepared
from microplane.training.context import leaves_holes

LARGE = 1 << 22  # bytes
QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5}  # of a weight, its scales left out


@dataclass(frozen=True)
class Need:
    """The least that a run takes, in bytes: without activations, logits and what the process itself holds."""

    base: int
    training: int  # of weights that the method adds, gradients, and the optimizer's state
    disk: int  # of the adapter, and of checkpoints to go on from, while one is written beside the one before


def least_need(prepared: Prepared) -> Need:
    """By the shapes of the model and the method."""
    shapes, form = prepared.shapes, prepared.form
    weights, trained = weight_count(shapes.plain), trainable_parameters(shapes.attached)
    each = QUANTISED_BYTES.get(form.quantised or "", form.stored.itemsize)
    needs = TrainingBytes.of(prepared.method, trained, prepared.config.train.optimizer)
    return Need(int(each * weights), needs.added + needs.gradients + needs.optimizer, needs.disk)


def lacking(prepared: Prepared) -> list[str]:
    """What is not there for a run, in words; nothing where there is enough, or the method does not fit the model (which
    is told when it is attached)."""
    try:
        need, runs = least_need(prepared), prepared.config.runs
    except MicroplaneError:
        return []
    found, memory, disk = [], free_memory(), free_disk(Path(runs).expanduser())
    if need.base + need.training > memory:
        found.append(
            f"the base takes {size(need.base)} and its training at least {size(need.training)} more, and "
            f"{size(memory)} of memory are free: choose method=qlora (4 bits a weight) or a smaller model, or free some"
        )
    if need.disk > disk:
        found.append(
            f"the run's folder will hold up to {size(need.disk)}, and {size(disk)} are free where {runs} lies: "
            "choose another folder with runs=FOLDER, or a method that trains fewer weights"
        )
    return found


def tight(peak: int | None) -> str | None:
    """What is to be said of a training that takes so much memory by forecast; None where there is enough.

    Args:
        peak: in bytes, with what this process takes already.
    """
    room = free_memory() + psutil.Process().memory_info().rss
    if peak is None or peak <= room:
        return None
    return (
        f"training takes about {size(peak)} of memory by forecast, and {size(room)} are there: microplane plan says "
        "which change makes it fit"
    )


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder lies, or will lie."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free


def without_holes(prepared: Prepared) -> Prepared:
    """Without the caching allocator: large pieces straight from the system, where the heap would have holes by them."""
    longest = int(prepared.splits.train.lengths.max())
    if not can_cache() and not leaves_holes(longest, prepared.form.dtype, prepared.config.train.recompute):
        keep_no_large_pieces(LARGE)
    return prepared
