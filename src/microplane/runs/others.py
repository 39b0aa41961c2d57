"""What a run has to see to where several processes train together (training/ranks.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from microplane.config.knobs import TrainKnobs
from microplane.device import choose
from microplane.errors import ConfigError
from microplane.hardware import keep_no_large_pieces
from microplane.methods import Method
from microplane.runs import provenance
from microplane.runs.prepare import Prepared
from microplane.training import ranks
from microplane.training.ranks import Ranks, world
from microplane.training.sharding import refuse_shard

__all__ = ["check_knobs", "joined", "prepared_alike", "world"]


@contextmanager
def joined(device: str, rows_in_hand: bool) -> Iterator[Ranks]:
    """The processes of this run, as the launcher has started them; most often this one alone.

    Args:
        device: as the knob `model.device`.
        rows_in_hand: whether the training rows lie in no file.

    Raises:
        ConfigError: for what several processes cannot do.
        LeftError: if another process ends.
    """

    def check() -> None:
        kind = choose(device).type
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"several processes train on CPUs or CUDA devices, not on {kind}: set model.device=cpu")
        if ":" in device:
            raise ConfigError(f"model.device = {device}: of several processes each takes its own; set it to cuda")
        if rows_in_hand:
            raise ConfigError("several processes cannot share rows from standard input or memory: give them a file")

    with ranks.joined(check) as found:
        yield found


def check_knobs(knobs: TrainKnobs, method: Method, found: Ranks, begun: bool) -> list[str]:
    """What is to be said of knobs that work otherwise with several processes, or with one.

    Args:
        begun: the run goes on with what more processes may have begun.

    Raises:
        ConfigError: where there is nothing to share out, or nobody to share it with.
    """
    several, told = found.size > 1, []
    if knobs.micro_tokens == "auto" and several:
        told = [f"train.micro_tokens: {knobs.at_once:,} throughout; only a process alone takes less where it must"]
    if not knobs.shard:
        return told
    refuse_shard(knobs, method)
    if several:
        return told
    if begun:
        return ["train.shard: this process is alone, so it holds the whole model"]
    raise ConfigError(
        "train.shard shares a model out to several processes, and this is one: add --processes 2, or more"
    )


def prepared_alike(found: Ranks, prepare: Callable[[], Prepared]) -> Prepared:
    """What each process prepares for itself; the first before the others, which find its caches. All must be alike.

    Raises:
        ConfigError: on all of them, if one has other data, another model or other versions.
    """
    with found.first_alone():
        prepared = prepare()
    if found.size > 1:
        versions = {name: provenance.describe()[name] for name in ("microplane", "commit")}
        found.check_same("data, model and versions", prepared.identity() | versions)
        if prepared.config.train.shard:
            keep_no_large_pieces()  # from the base's weights on
    return prepared
