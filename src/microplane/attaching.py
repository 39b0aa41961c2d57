"""A method on any model: on ours, and on an nn.Module that is not ours (a vision encoder, CLIP, Whisper), by its names.

adapted = microplane.attach(model, "lora", targets=["*.attention.query", "fc1"], train=["classifier"])
optimizer = torch.optim.AdamW(adapted.param_groups(1e-3))
...                                         # any training loop
adapted.save("vit-lora")                    # peft's format where the method has it
microplane.attach_saved(fresh_model, "vit-lora").merge()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microplane.errors import AdapterError, ConfigError
from microplane.methods import Method, make_method
from microplane.methods.kinds import AdaptedLinear
from microplane.methods.method import attach as attach_method
from microplane.methods.method import load_state, state_of, trainable, trainable_parameters
from microplane.models.contract import Model, view_of
from microplane.models.view import forget, register
from microplane.paths import write_aside
from microplane.training.checkpoint import load_adapter, read_method, save_adapter, save_tensors, weights_name


@dataclass(frozen=True)
class Attached:
    """A model with a method attached."""

    model: nn.Module
    method: Method

    def trainable(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return trainable(self.model)

    @property
    def trainable_parameters(self) -> int:
        return trainable_parameters(self.model)

    def param_groups(self, lr: float | None = None) -> list[dict[str, Any]]:
        """The groups for an optimizer; the method's own learning rate is the default."""
        return self.method.param_groups(self.model, self.method.default_lr if lr is None else lr)

    def penalty(self) -> Tensor | float:
        """What the method adds to the loss of a step: of AdaLoRA, for one."""
        return self.method.penalty(self.model)

    def step(self, optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
        """Make the optimizer's step number `step` (from 0) of `total`. For most methods `optimizer.step()` is the same;
        AdaLoRA and ScaLoRA need this one."""
        self.method.step(self.model, optimizer, step, total)

    def state(self) -> dict[str, Tensor]:
        """All that is needed to come back to this function from the untouched model."""
        return state_of(self.method, self.model)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            AdapterError: listing every tensor that is missing, unexpected or of another shape; nothing is changed then.
        """
        load_state(self.method, self.model, state)

    def save(self, folder: str | Path, base: str | None = None) -> int:
        """Write an adapter's folder, in peft's format where the method has it; returns the bytes of its weights.

        Args:
            base: what the untouched model is called, for those who open the adapter.
        """
        folder, view = Path(folder), view_of(self.model)
        about = {"base": base, "train": list(view.beside) if view is not None else []}
        if not self.method.whole_model or isinstance(self.model, Model):
            return save_adapter(folder, self.model, self.method, about)
        knobs = {"name": self.method.name, **self.method.model_dump(mode="json"), "about": about}
        write_aside(folder / "method.json", json.dumps(knobs, indent=2).encode() + b"\n")
        file = folder / weights_name(self.method)
        save_tensors(file, self.state(), {"format": "pt"})
        return file.stat().st_size

    def load(self, folder: str | Path) -> None:
        """Fill in what an adapter's folder holds.

        Raises:
            AdapterError: if it does not fit, saying all that does not.
        """
        load_adapter(Path(folder), self.model, self.method)

    def merge(self) -> nn.Module:
        """The model as it was built, with what was learned in its own weights."""
        self.method.merge(self.model)
        forget(self.model)
        return self.model.requires_grad_(False)


def attach(
    model: nn.Module,
    method: str | Mapping[str, Any] | Method = "lora",
    targets: str | Sequence[str] | None = None,
    train: str | Sequence[str] = (),
    losses: Sequence[Callable[[], Tensor]] = (),
) -> Attached:
    """Freeze `model` in place and add or unfreeze what `method` trains. Linear layers that are already there are
    replaced by adapted ones under the same names, so the model's own code runs as before.

    Args:
        method: its name, or `{"name": "lora", "rank": 8}`, or the method itself.
        targets: linear layers by role (`query`, `fc1`: the last part of their names), by name or its end
            (`encoder.layer.0.attention.attention.query`), by pattern (`*.attention.*.query`), or `all` of them.
        train: parts, by name, that train in full beside the method: a new head.
        losses: for starts that look at data: each computes the mean loss on a few training rows, differentiably.

    Raises:
        ConfigError: for targets that the model does not have, with the nearest that it has; for a method that needs
            places which only our own models keep open; if a method is attached already.
    """
    made = _made(method, targets)
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ConfigError("the model has a method attached already; merge that one first, or build the model anew")
    if made.prepare_rows and not losses:
        start = getattr(made, "start", made.name)
        raise ConfigError(f"method.start = {start!r} looks at training rows: give attach(..., losses=[...])")
    _attach(model, made, [train] if isinstance(train, str) else list(train))
    made.prepare(model, losses)
    return Attached(model, made)


def attach_saved(model: nn.Module, folder: str | Path) -> Attached:
    """Put an adapter that was saved (here, or by peft) on an untouched model of the same kind, ready for use.

    Raises:
        AdapterError: if there is none, or it does not fit.
    """
    folder = Path(folder)
    method, about = read_method(folder, beside=True)
    try:
        _attach(model, method, about.get("train") or [])
    except ConfigError as error:
        raise AdapterError(f"the adapter {folder} does not fit this model. {error}") from None
    attached = Attached(model, method)
    attached.load(folder)
    model.requires_grad_(False).eval()
    return attached


def _made(method: str | Mapping[str, Any] | Method, targets: str | Sequence[str] | None) -> Method:
    if isinstance(method, Method):
        method = {"name": method.name, **method.model_dump()}
    knobs: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    if targets is not None:
        knobs["targets"] = [targets] if isinstance(targets, str) else list(targets)
    return make_method(knobs)


def _attach(model: nn.Module, method: Method, train: Sequence[str]) -> None:
    if isinstance(model, Model):
        if train:
            raise ConfigError(f"train = {train[0]!r}: parts by name are for models that are not Microplane's own")
    else:
        register(model, train)
    attach_method(method, model)
