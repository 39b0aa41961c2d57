"""What would make a method fit: changes that are tried in the forecast, so that what is advised is known to suffice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from microplane.config.knobs import RunKnobs
from microplane.forecast.at_once import AtOnce
from microplane.methods import Method
from microplane.nn.number_format import NumberFormat
from microplane.report.words import size

Changes = Mapping[str, Any]  # knobs by dotted name
Total = Callable[[Changes], float]  # bytes with them; infinite where they are refused
LEAST_TOKENS = 16  # of train.micro_tokens
OTHERS = ("lora", "qlora")  # methods that train few weights


def possible(config: RunKnobs, method: Method, form: NumberFormat, at_once: AtOnce) -> list[dict[str, Any]]:
    """What could be changed to take less memory, the mildest first."""
    train = config.train
    found: list[dict[str, Any]] = [{"train.micro_tokens": tokens} for tokens in _fewer(at_once)]
    if train.recompute != "blocks":
        found.append({"train.recompute": "blocks"})
    if train.optimizer == "adamw":
        found.append({"train.optimizer": "adamw_8bit"})
    if train.optimizer != "adafactor":
        found.append({"train.optimizer": "adafactor"})
    if form.quantised != "nf4" and method.trains != "weights":
        found.append({"model.dtype": "nf4"})
    return found


def _fewer(at_once: AtOnce) -> Iterator[int]:
    """Ever half as many tokens at once, down to a row."""
    tokens = at_once.tokens // 2
    while tokens >= max(LEAST_TOKENS, at_once.row):
        yield tokens
        tokens //= 2


def advice(total: int, memory: int, changes: Sequence[Changes], total_with: Total, others: Mapping[str, float]) -> str:
    """Of a method that takes more than there is: each change that suffices alone, else the fewest that do together.

    Args:
        total: bytes that it takes.
        memory: bytes that there are.
        others: totals of methods that could be taken instead.
    """
    lacking = f"{size(total - memory)} too much: "
    ways = [_said(one, taken) for one, taken in _one_of_a_kind(changes, total_with, memory)]
    ways += [f"the method {name} ({size(taken)})" for name, taken in others.items() if taken <= memory]
    if ways:
        return lacking + "; or ".join(ways)
    every: dict[str, Any] = {name: value for one in changes for name, value in one.items()}  # of a knob the last
    taken = total_with(every) if every else math.inf
    if taken > memory:
        least = f" (at least {size(taken)} even with {knobs(every)})" if taken < total else ""
        return f"{lacking}a smaller model, or more memory{least}"
    for name in reversed(list(every)):
        less = {other: value for other, value in every.items() if other != name}
        if less and (without := total_with(less)) <= memory:
            every, taken = less, without
    return lacking + _said(every, taken)


def _one_of_a_kind(changes: Sequence[Changes], total_with: Total, memory: int) -> Iterator[tuple[Changes, float]]:
    """Of each knob the mildest value that suffices alone, and the total with it."""
    found: set[str] = set()
    for one in changes:
        if not found & one.keys() and (taken := total_with(one)) <= memory:
            found |= one.keys()
            yield one, taken


def _said(changes: Changes, total: float) -> str:
    return f"{knobs(changes)} ({size(total)})"


def knobs(changes: Changes) -> str:
    """As they are set on the command line."""
    return " and ".join(f"{name}={value}" for name, value in changes.items())
