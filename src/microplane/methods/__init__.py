"""Every method by its name. Adding one: its file, and its line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microplane.config import build
from microplane.errors import ConfigError, nearest
from microplane.methods.adalora import AdaLoRA
from microplane.methods.full import Full
from microplane.methods.growing import GrowingLoRA
from microplane.methods.lora import LoRA
from microplane.methods.method import Method, trainable
from microplane.methods.nb_lora import NBLoRA
from microplane.methods.scalora import ScaLoRA

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (LoRA, Full, GrowingLoRA, AdaLoRA, ScaLoRA, NBLoRA)
}

__all__ = ["METHODS", "Full", "LoRA", "Method", "make_method", "trainable"]


def make_method(knobs: Mapping[str, Any] | str) -> Method:
    """A method from its name, or from `{"name": ..., knob: value}`.

    Raises:
        ConfigError: for an unknown method or knob, with the nearest name.
    """
    values = {"name": knobs} if isinstance(knobs, str) else dict(knobs)
    name = values.pop("name", "lora")
    if name == LoRA.name and values.get("rank") == "auto":
        name = GrowingLoRA.name
    if name not in METHODS:
        raise ConfigError(
            f"method.name = {name!r}: there is no such method; there are {', '.join(METHODS)}."
            f"{nearest(str(name), METHODS)}"
        )
    return build(METHODS[name], values, section="method.")
