"""A run that was killed goes on to the same bits: what tests of several families share."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

import microplane
from microplane.training import loop
from microplane.training.resume import checkpoints


def assert_resumes_to_the_bit(done: microplane.Run) -> None:
    """As if the run had been killed behind the checkpoint before its last."""
    [file] = (done.folder / "adapter").glob("*.safetensors")  # of an adapter, or of a whole model
    before = file.read_bytes()
    shutil.rmtree(checkpoints(done.folder / "resume")[-1])
    microplane.resume(done.folder)
    assert file.read_bytes() == before


def assert_killed_it_goes_on_to_the_same_bytes(
    begin: Callable[[str], microplane.Run], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed at its step 13, beside one that is not.

    Args:
        begin: trains with the name that it is given.
        weights: the name of the file with them.
    """
    straight, step = begin("straight"), loop.train_step

    def dying(job, totals):
        if totals.step == 13:
            raise KeyboardInterrupt
        return step(job, totals)

    monkeypatch.setattr(loop, "train_step", dying)
    with pytest.raises(KeyboardInterrupt):
        begin("killed")
    monkeypatch.setattr(loop, "train_step", step)
    again = microplane.resume(straight.folder.parent / "killed")
    for name in ("metrics.jsonl", f"adapter/{weights}"):
        assert (again.folder / name).read_bytes() == (straight.folder / name).read_bytes()
