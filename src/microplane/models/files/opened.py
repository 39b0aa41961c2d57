"""A base that is read once and can be had again: to open on it what was saved, without reading all of it anew."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from microplane.device import put
from microplane.models.contract import Model
from microplane.models.external.transformers import TransformersModel
from microplane.models.files.checkpoint import Checkpoint
from microplane.models.files.load import build_model, new_model, read_parameters
from microplane.nn.number_format import NumberFormat


class OpenedBase:
    """`model` is there to be trained; `untouched()` gives the base as it was read.

    Args:
        checkpoint: the opened files; its config alone for new weights.
        seed: of new random weights; None where the weights are read.
        told: is called with each model that is made, to tell it what its files do not say.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint,
        form: NumberFormat,
        seed: int | None = None,
        told: Callable[[Model], None] = lambda _: None,
    ):
        self.path, self.checkpoint, self.form, self.seed, self.told = path, checkpoint, form, seed, told
        self._model: Model | None = self._make()
        self._bare: Model | None = share(self._model)
        self._sums = {name: checksum(tensor) for name, tensor in tensors_of(self._bare)}

    @property
    def model(self) -> Model:
        assert self._model is not None, "the model to be trained was let go"
        return self._model

    @property
    def _shared(self) -> Model:
        assert self._bare is not None, "the weights as they were read were let go"
        return self._bare

    def keep(self, whole: bool) -> None:
        """Whether to hold on to what was read. Where each of several processes is to keep a part of `model` alone, the
        whole weights would stay alive here; `untouched()` reads all of them again then."""
        if not whole:
            self._bare = None

    def let_go(self) -> None:
        """Free what was attached to `model`, once it has been trained and saved."""
        self._model = None

    @property
    def digest(self) -> str:
        """Of the configuration, and of every weight as it was read: all that decides what the base computes."""
        extra = {name: checksum(tensor) for name, tensor in self._shared.extra_weights.items()}
        parts = [repr(self._shared.config), self._sums, extra]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _make(self) -> Model:
        read = self.seed is None
        model = build_model(self.checkpoint, self.form) if read else new_model(self.path, self.seed or 0, self.form)
        self.told(model)
        return model

    def changed(self) -> set[str]:
        """Parameters and buffers that are not, or may not be, what was read: that trained, or were written to."""
        return {
            name
            for name, tensor in tensors_of(self._shared)
            if tensor.requires_grad or checksum(tensor) != self._sums[name]
        }

    def untouched(self) -> Model:
        """The base once more, without anything that was attached to `model` or trained in it; once only.

        What is still as it was read is shared with `model`. The rest is read again from the files.
        """
        if self._bare is None:
            return self._make()
        changed = self.changed()
        if not changed:
            return self._bare
        if self.seed is not None or isinstance(self._bare, TransformersModel):  # made by chance, or by another library
            return self._make()
        read = read_parameters(self._bare, self.checkpoint, self.form.stored, changed)
        if changed - read.keys():  # what follows from other weights, or is not in the files by itself
            return self._make()
        there = {name: put(tensor, self.form.device) for name, tensor in read.items()}
        self._bare.load_state_dict(there, strict=False, assign=True)
        return self._bare.requires_grad_(False)


def share(model: Model) -> Model:
    """A model of modules of its own that hold the very same parameters and buffers."""
    memo: dict[int, object] = {id(tensor): tensor for _, tensor in tensors_of(model)}
    memo |= {id(tensor): tensor for tensor in model.extra_weights.values()}
    twin: Model = copy.deepcopy(model, memo)
    return twin


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes. Tensors count no version for what is written through `.data` or numpy."""
    return zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
