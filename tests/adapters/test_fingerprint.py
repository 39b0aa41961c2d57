"""By what an adapter knows its base, and what asking for it takes."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from microplane.checkpoints.attach_saved import weights_fingerprint
from microplane.hardware import give_back_memory
from microplane.training.context import PeakMemory

MB = 1 << 20


def test_a_fingerprint_takes_the_memory_of_a_tensor_and_not_of_the_file(tmp_path):
    """A run asks for it just before it trains: all 440 MB of a BERT counted as the run's at its peak."""
    tensors = {f"t{number}": torch.full((4 * MB,), float(number)) for number in range(12)}  # 16 MB each
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    give_back_memory()
    memory = PeakMemory()
    before = memory.bytes()
    weights_fingerprint(tmp_path)
    assert memory.bytes() - before < 48 * MB or not memory.counted_anew
