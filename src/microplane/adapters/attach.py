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
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microplane.checkpoints.adapter import load_adapter, read_method, read_state, save_adapter, weights_name
from microplane.checkpoints.attach_saved import settled, trained_on
from microplane.checkpoints.peft_files import as_stored
from microplane.checkpoints.tensors import save_tensors
from microplane.errors import AdapterError, ConfigError, check_type
from microplane.files import write_aside
from microplane.methods import Method, make_method
from microplane.methods.adapted_linear import AdaptedLinear
from microplane.methods.disable import disabled
from microplane.methods.method import (
    attach_method,
    forget_method,
    load_state,
    state_of,
    trainable,
    trainable_parameters,
)
from microplane.models.contract import Model, linears, module_map_of
from microplane.models.external.any_module import map_modules, unmap
from microplane.models.files.load import quantise_linears
from microplane.nn.number_format import NumberFormat
from microplane.nn.quantised import QUANTISED, QuantisedLinear


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
        return self.method.param_groups(self.model, self.method.rate(self.model) if lr is None else lr)

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
        folder, module_map = Path(folder), module_map_of(self.model)
        kinds = sorted({part.kind for part in self.model.modules() if isinstance(part, QuantisedLinear)})
        about: dict[str, Any] = {
            "base": base,
            "train": list(module_map.modules_to_save) if module_map is not None else [],
        }
        about |= {"base_dtype": kinds[0]} if kinds else {}
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

    def disabled(self) -> AbstractContextManager[None]:
        """Inside `with adapted.disabled():` the model computes what the untouched one does.

        Raises:
            AdapterError: if the method trains the model's own weights, or was merged.
        """
        return disabled(self.model)

    def merge(self) -> nn.Module:
        """The model as it was built, with what was learned in its own weights."""
        self.method.merge(self.model)
        unmap(self.model)
        forget_method(self.model)
        return self.model.requires_grad_(False)


def attach(
    model: nn.Module,
    method: str | Mapping[str, Any] | Method = "lora",
    targets: str | Sequence[str] | None = None,
    train: str | Sequence[str] = (),
    losses: Sequence[Callable[[], Tensor]] = (),
    base: str = "auto",
) -> Attached:
    """Freeze `model` in place and add or unfreeze what `method` trains. Linear layers that are already there are
    replaced by adapted ones under the same names, so the model's own code runs as before.

    Args:
        method: its name, or `{"name": "lora", "rank": 8}`, or the method itself.
        targets: linear layers by role (`q_proj`, `fc1`: the last part of their names), by name or its end
            (`layers.0.attention.q_proj`), by pattern (`*.attention.q_proj`), or `all` of them.
        train: parts, by name, that train in full beside the method: a new head. They keep their number format, in which
            small updates may vanish if it is bfloat16.
        losses: for starts that look at data: each computes the mean loss on a few training rows, differentiably.
        base: how the linear layers of the blocks are kept that do not train: int8, nf4, or plain as they are; auto is
            as the method asks, nf4 for qlora.

    Raises:
        ConfigError: for targets that the model does not have, with the nearest that it has; for a method that needs
            places which only our own models keep open; if a method is attached already.
    """
    check_type(model, "model", nn.Module, "a torch module")
    check_type(method, "method", (str, Mapping, Method), "its name, or {'name': ..., knob: value}")
    made = _made(method, targets)
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ConfigError("the model has a method attached already; merge that one first, or build the model anew")
    if made.init_rows and not losses:
        start = getattr(made, "start", made.name)
        raise ConfigError(f"method.start = {start!r} looks at training rows: give attach(..., losses=[...])")
    weights = _attach(model, made, [train] if isinstance(train, str) else list(train), _kind(base, made, made.quantize))
    made.init_from_data(model, losses, weights.__getitem__ if weights else None)
    return Attached(model, made)


def attach_saved(model: nn.Module, folder: str | Path, base: str = "auto") -> Attached:
    """Put an adapter that was saved (here, or by peft) on an untouched model of the same kind, ready for use.

    Args:
        base: as in `attach`; auto is as it was trained. To merge an adapter of a quantised base, say plain.

    Raises:
        AdapterError: if there is none, or it does not fit.
    """
    check_type(model, "model", nn.Module, "a torch module")
    check_type(folder, "folder", (str, Path), "the path of an adapter")
    folder = Path(folder)
    method, about = read_method(folder, beside=not isinstance(model, Model))
    state: Mapping[str, Tensor] | None = None
    if isinstance(model, Model):
        method, state, _ = settled(model, method, folder, about)
    elif (config := about.get("peft")) is not None:
        method = as_stored(method, config, read_state(folder, method))
    told = trained_on(method, about)[0]
    try:
        _attach(model, method, about.get("train") or [], _kind(base, method, None if told == "auto" else told))
    except ConfigError as error:
        raise AdapterError(f"the adapter {folder} does not fit this model. {error}") from None
    attached = Attached(model, method)
    load_adapter(folder, model, method, state)
    model.requires_grad_(False).eval()
    return attached


def _made(method: str | Mapping[str, Any] | Method, targets: str | Sequence[str] | None) -> Method:
    if isinstance(method, Method):
        method = {"name": method.name, **method.model_dump()}
    knobs: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    if targets is not None:
        check_type(targets, "targets", (str, list, tuple), "a pattern of module names, or a list of such")
        knobs["targets"] = [targets] if isinstance(targets, str) else list(targets)
    return make_method(knobs)


def _kind(base: str, method: Method, asked: str | None) -> str | None:
    """How the base is quantised, None for not at all."""
    if base not in ("auto", "plain", *QUANTISED):
        raise ConfigError(f"base = {base!r}: possible are auto, plain, {', '.join(QUANTISED)}")
    kind = asked if base == "auto" else None if base == "plain" else base
    if kind and (method.trains_base or method.needs_float32):
        why = method.needs_float32 or "trains the model's own weights, and small updates would be lost"
        raise ConfigError(f"base = {base}: the method {method.name} {why}; say plain")
    return kind


def _attach(model: nn.Module, method: Method, train: Sequence[str], kind: str | None) -> dict[str, Tensor]:
    """Returns the weights of linear layers as they were, if they are quantised now."""
    if isinstance(model, Model):
        if train:
            raise ConfigError(f"train = {train[0]!r}: parts by name are for models that are not Microplane's own")
    else:
        map_modules(model, train)
    weights = {}
    if kind:
        sites = linears(model).items()
        weights = {name: site.module.get_parameter("weight").detach() for name, site in sites}
        quantise_linears(model, NumberFormat(next(iter(weights.values())).dtype, kind))
    attach_method(method, model)
    return weights
