"""A base that is read once: what it holds beside the model, and what it gives when it holds nothing."""

from __future__ import annotations

import gc
import weakref

import torch

from microplane.models.files.load import open_checkpoint
from microplane.models.files.opened import OpenedBase
from microplane.nn.number_format import NumberFormat
from tests.tiny import save_tiny_folder


def test_what_was_read_is_alive_no_longer_where_nothing_is_kept(tmp_path):
    folder = save_tiny_folder(tmp_path / "model")
    base = OpenedBase(folder, open_checkpoint(folder), NumberFormat(torch.float32))
    read = {name: tensor.clone() for name, tensor in base.model.named_parameters()}
    alive = [weakref.ref(tensor) for tensor in base.model.parameters()]
    torch._foreach_add_([tensor.data for tensor in base.model.parameters()], 1.0)
    base.keep(whole=False)
    assert all(tensor() is not None for tensor in alive)  # of the model
    base.let_go()
    gc.collect()
    assert all(tensor() is None for tensor in alive)
    again = dict(base.untouched().named_parameters())
    assert all(torch.equal(again[name], tensor) for name, tensor in read.items())
