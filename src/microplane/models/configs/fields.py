"""Reading a config.json, the part that all families share: the architecture it names, and the types of its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from microplane.errors import ModelError

Wanted = Mapping[str, tuple[str, Callable[[Any], bool]]]  # field -> what it must be in words, and the test of it


def is_size(x: Any) -> bool:
    return type(x) is int and x > 0


def is_number(x: Any) -> bool:
    return type(x) in (int, float) and x > 0


SIZE: tuple[str, Callable[[Any], bool]] = ("a whole number above 0", is_size)
NUMBER: tuple[str, Callable[[Any], bool]] = ("a number above 0", is_number)
SIDES = ("encoder", "decoder", "text_config")  # objects in a config.json that describe a part of the model
TOKEN: tuple[str, Callable[[Any], bool]] = ("the id of a token", lambda x: type(x) is int and x >= 0)
SWITCH: tuple[str, Callable[[Any], bool]] = ("true or false", lambda x: isinstance(x, bool))


def architecture_of(config: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """Which of the `known` architectures (name -> model_type) a config.json names, by its class or by its model_type.

    Raises:
        ModelError: if none, naming it and those that are supported.
    """
    by_type = [name for name, model_type in known.items() if model_type == config.get("model_type")]
    named = config.get("architectures") or by_type
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ModelError(f"architectures = {named!r} in config.json: expected a list of names")
    for name in named:
        if name in known:
            return name
    what = ", ".join(named) or config.get("model_type") or "(config.json names none)"
    families = ", ".join(dict.fromkeys(known.values()))
    raise ModelError(f"the architecture {what} is not supported; supported are {families}")


def overlaid(told: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json with those of `ours` in their places, of a part of the model one by one."""
    both = {name: x for name, x in ours.items() if isinstance(x, Mapping) and isinstance(told.get(name), Mapping)}
    return {**told, **ours} | {name: overlaid(told[name], x) for name, x in both.items() if name in SIDES}


def check_types(fields: Mapping[str, Any], wanted: Wanted, required: tuple[str, ...]) -> None:
    """Check the types of fields; the error lists all wrong ones.

    Raises:
        ModelError: listing them.
    """
    wrong = [
        f"  {name} = {fields.get(name)!r}: expected {words}"
        for name, (words, fits) in wanted.items()
        if (fields.get(name) is not None or name in required) and not fits(fields.get(name))
    ]
    if wrong:
        raise ModelError("config.json has fields that are wrong or missing:\n" + "\n".join(wrong))
