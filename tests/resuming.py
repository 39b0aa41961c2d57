"""A run that was killed goes on to the same bits: what tests of several families share."""

from __future__ import annotations

import shutil

import microplane
from microplane.training.resume import checkpoints


def assert_resumes_to_the_bit(done: microplane.Run) -> None:
    """As if the run had been killed behind the checkpoint before its last."""
    [file] = (done.folder / "adapter").glob("*.safetensors")  # of an adapter, or of a whole model
    before = file.read_bytes()
    shutil.rmtree(checkpoints(done.folder / "resume")[-1])
    microplane.resume(done.folder)
    assert file.read_bytes() == before
