"""Every method by its name. Adding one: its file, and its line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microplane.config import build
from microplane.errors import ConfigError, nearest
from microplane.methods.full import Full
from microplane.methods.lora import LoRA
from microplane.methods.method import Method, trainable
from microplane.methods.qlora import QLoRA

METHODS: dict[str, type[Method]] = {method.name: method for method in (LoRA, QLoRA, Full)}

__all__ = ["METHODS", "Full", "LoRA", "Method", "QLoRA", "make_method", "trainable"]


def make_method(knobs: Mapping[str, Any] | str) -> Method:
    """A method from its name, or from `{"name": ..., knob: value}`.

    Raises:
        ConfigError: for an unknown method or knob, with the nearest name.
    """
    values = {"name": knobs} if isinstance(knobs, str) else dict(knobs)
    name = values.pop("name", "lora")
    if name not in METHODS:
        raise ConfigError(
            f"method.name = {name!r}: there is no such method; there are {', '.join(METHODS)}."
            f"{nearest(str(name), METHODS)}"
        )
    return build(METHODS[name], values, section="method.")
