"""What is tried on the pretended device: every family with every method, and what else changes a step's path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from microplane.methods import METHODS
from tests.contract.test_methods import MORE
from tests.devices.families import CONTRACT, FAMILIES, HEADS, REFUSED, WITH_HEADS

ROWS = 16  # of a step, at most each a micro-batch
LONG = 520  # tokens of a row whose attention is computed again in backward


@dataclass(frozen=True)
class Case:
    family: str
    method: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    quantised: str | None = None
    in_8_bits: bool = False
    dropout: float = 0.0  # of the model itself
    longest: int = 0  # tokens of each row, where not those of the family's rows

    @property
    def name(self) -> str:
        parts = [self.family, *(f"{value}" for value in self.method.values())]
        parts += [f"{name}={value}" for name, value in self.train.items()]
        return "/".join(
            [*parts, *([self.quantised] if self.quantised else []), *(["int8"] if self.in_8_bits else [])]
            + ([f"{self.longest} tokens"] if self.longest else [])
        )


def cases() -> Iterator[Case]:
    """Every family with every method, every task head, and what changes the path that a step takes."""
    for family in FAMILIES:
        for name in METHODS:
            if (name, family) not in REFUSED:
                yield Case(family, {"name": name}, quantised=METHODS[name]().quantize)
    for head in HEADS:
        for name in WITH_HEADS:
            if (name, head.partition("+")[0]) not in REFUSED or name == "head-only":
                yield Case(head, {"name": name})
    yield Case("ernie", {"name": "ia3", "targets": ["key", "value"], "feedforward": []})
    yield from (Case(family, knobs) for family, knobs in MORE if len(knobs) > 1)
    one = "llama-tied"
    for recompute in ("cheap", "blocks"):
        yield Case(one, {"name": "lora"}, {"recompute": recompute})
        yield Case("t5", {"name": "full"}, {"recompute": recompute})
    for family in CONTRACT:
        yield Case(family, {"name": "full"}, {"optimizer": "adafactor"})
        yield Case(family, {"name": "lora", "dropout": 0.2}, {"label_smoothing": 0.1 if family != "bert" else 0.0})
    yield Case(one, {"name": "full"}, {"optimizer": "adafactor", "scale_parameter": True, "weight_decay": 0.1})
    yield Case(one, {"name": "full"}, {"weight_decay": 0.1, "layer_decay": 0.8, "unfreeze_every": 2})
    for quantised in ("nf4", "int8"):
        for name in ("lora", "dora", "paca", "prompt", "vera"):
            yield Case(one, {"name": name}, quantised=quantised)
        yield Case(one, {"name": "lora"}, quantised=quantised, in_8_bits=True)
    yield Case(one, {"name": "lora", "start": "loftq"}, quantised="nf4")
    yield Case(one, {"name": "last-n", "n": 1})  # of two, so that one is frozen
    for family in ("llama-tied", "t5"):  # whose scores are not kept
        yield Case(family, {"name": "lora"}, longest=LONG)
        yield Case(family, {"name": "lora", "dropout": 0.1}, {"recompute": "blocks"}, longest=LONG)
