"""How much a comparison may take: a time, tokens, or optimizer steps, of all its trials together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from microplane.errors import ConfigError

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_NUMBERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


@dataclass(frozen=True)
class Budget:
    kind: Literal["seconds", "tokens", "steps"]
    amount: float

    @classmethod
    def of(cls, time: str | float | None, tokens: str | int | None, steps: str | int | None) -> Self | None:
        """Of what was given; None if nothing was: each final run is as long as one of `train`.

        Raises:
            ConfigError: for more than one of them, or what is no amount.
        """
        names = {"--budget": time, "--tokens": tokens, "--steps": steps}
        given = [name for name, value in names.items() if value is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are given: a comparison has one budget")
        if time is not None:
            return cls("seconds", seconds_in(str(time)))
        if tokens is not None:
            return cls("tokens", number_in(str(tokens), "--tokens"))
        return None if steps is None else cls("steps", number_in(str(steps), "--steps"))


def seconds_in(text: str) -> float:
    """`2h`, `90 min`, `1h30m`, `45s`.

    Raises:
        ConfigError: for anything else.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", text.lower())
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", "", text.lower()).strip():
        raise ConfigError(f"--budget {text!r} is no time; expected as in 2h, 90min, 1h30m or 45s")
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not total:
        raise ConfigError("--budget is no time at all; expected as in 2h, 90min, 1h30m or 45s")
    return total


def number_in(text: str, what: str) -> int:
    """`200000`, `200,000`, `200k`, `1.5M`.

    Raises:
        ConfigError: for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgb]?)", text.lower().replace(",", "").replace("_", "").strip())
    number = round(float(found[1]) * _NUMBERS[found[2]]) if found else 0
    if number < 1:
        raise ConfigError(f"{what} {text!r} is no number of them; expected as in 200000, 200k or 1.5M")
    return number
