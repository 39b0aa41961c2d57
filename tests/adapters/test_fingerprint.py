"""By what an adapter knows its base, and what asking for it takes."""

from __future__ import annotations

import hashlib

import torch
from safetensors.torch import save_file

from microplane.checkpoints.attach_saved import MEBIBYTE, _is_base, fingerprint, weights_fingerprint
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


def test_a_fingerprint_does_not_take_the_memory_of_its_largest_tensor(tmp_path):
    """A table of words is half of a small model, and was a run's peak."""
    table = torch.arange(40 * MB, dtype=torch.float32).view(-1, 64)  # 160 MB
    save_file({"table": table, "b": torch.ones(3)}, tmp_path / "model.safetensors")
    digest = hashlib.sha256(f"table:{table.dtype}:{tuple(table.shape)}:".encode())
    digest.update(table.numpy().data)
    other = hashlib.sha256(b"b:torch.float32:(3,):" + torch.ones(3).numpy().tobytes())
    expected = int(digest.hexdigest(), 16) + int(other.hexdigest(), 16)
    del table
    give_back_memory()
    memory = PeakMemory()
    before = memory.bytes()
    assert weights_fingerprint(tmp_path) == f"{expected % (1 << 256):064x}"
    assert memory.bytes() - before < 48 * MB or not memory.counted_anew


def test_the_note_of_earlier_adapters_tells_a_base_by_names_and_both_ends_of_its_files(tmp_path):
    content = b"a" + b"-" * (3 * MEBIBYTE) + b"z"

    def base(name, file="model.safetensors", begin=b"a", end=b"z"):
        (folder := tmp_path / name).mkdir()
        (folder / file).write_bytes(begin + content[1:-1] + end)
        return folder

    about = {"base_fingerprint": fingerprint(base("first"))}
    assert _is_base(base("same"), about)
    assert not _is_base(base("begins", begin=b"b"), about)
    assert not _is_base(base("ends", end=b"y"), about)
    assert not _is_base(base("renamed", file="other.safetensors"), about)
    assert _is_base(tmp_path / "ends", {})
