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
    from microplane.adapters.attach import attach, attach_saved
    from microplane.adapters.merge import merge
    from microplane.inference.pipeline import load
    from microplane.runs.evaluate import measure_file as evaluate
    from microplane.runs.train import resume, train

__all__ = ["attach", "attach_saved", "evaluate", "load", "merge", "resume", "train"]

_HOMES = {
    "attach": ("microplane.adapters.attach", "attach"),
    "attach_saved": ("microplane.adapters.attach", "attach_saved"),
    "evaluate": ("microplane.runs.evaluate", "measure_file"),
    "load": ("microplane.inference.pipeline", "load"),
    "merge": ("microplane.adapters.merge", "merge"),
    "resume": ("microplane.runs.train", "resume"),
    "train": ("microplane.runs.train", "train"),
}


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when something of it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'microplane' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
