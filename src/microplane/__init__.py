"""Microplane: fine-tune pretrained language models on the machine you have, and prove what was trained.

import microplane

run = microplane.train("smollm2", "commands.jsonl", method="lora", set={"method.rank": 8})
print(run.metrics["after"])
print(run.load().generate("turn on the kitchen light"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microplane.attaching import attach, attach_saved
    from microplane.loading import load
    from microplane.measure import measure_file as evaluate
    from microplane.merging import merge
    from microplane.run import resume, train

__all__ = ["attach", "attach_saved", "evaluate", "load", "merge", "resume", "train"]

_HOMES = {
    "attach": ("microplane.attaching", "attach"),
    "attach_saved": ("microplane.attaching", "attach_saved"),
    "evaluate": ("microplane.measure", "measure_file"),
    "load": ("microplane.loading", "load"),
    "merge": ("microplane.merging", "merge"),
    "resume": ("microplane.run", "resume"),
    "train": ("microplane.run", "train"),
}


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when something of it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'microplane' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
