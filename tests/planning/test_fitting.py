"""What is advised where a method takes more memory than there is."""

from __future__ import annotations

import pytest
import torch

from microplane.config.build import assemble
from microplane.forecast.at_once import AtOnce
from microplane.methods import make_method
from microplane.nn.number_format import NumberFormat
from microplane.planning.fitting import advice, possible

WIDE = NumberFormat(torch.float32)


def changes(method="lora", form=WIDE, **knobs):
    config = assemble(given={name.replace("__", "."): value for name, value in knobs.items()})
    at_once = AtOnce(tokens=64, row=16, trained=64, step=64, evaluated=64, sizes=1, parts=1)
    return [next(iter(one.items())) for one in possible(config, make_method(method), form, at_once)]


def test_only_what_would_change_something_is_offered():
    assert changes() == [
        ("train.micro_tokens", 32),
        ("train.micro_tokens", 16),
        ("train.recompute", "blocks"),
        ("train.optimizer", "adamw_8bit"),
        ("train.optimizer", "adafactor"),
        ("model.dtype", "nf4"),
    ]
    assert ("model.dtype", "nf4") not in changes("full")
    assert ("model.dtype", "nf4") not in changes(form=NumberFormat(torch.float32, "nf4"))
    assert "train.recompute" not in dict(changes(train__recompute="blocks"))
    assert "train.optimizer" not in dict(changes(train__optimizer="adafactor"))


@pytest.mark.parametrize(
    ("memory", "told"),
    [(98, "a=1"), (96, "a=1 and b=2"), (94, "a=1 and b=2 and c=3"), (90, "a smaller model, or more memory (at least ")],
)
def test_the_fewest_changes_that_suffice_are_told_and_the_mildest(memory, told):
    said = advice(100, memory, [{"a": 1}, {"b": 2}, {"c": 3}], lambda some: 100 - 2 * len(some), {})
    assert said.partition(": ")[2].startswith(told)
    assert ("c=3" in said) is (memory < 96 or memory == 98)
