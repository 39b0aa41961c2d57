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
    __version__: str
    from microplane.adapters.attach import attach, attach_saved
    from microplane.adapters.merge import merge
    from microplane.comparison.compare import compare
    from microplane.exports.export import export
    from microplane.exports.push import push
    from microplane.inference.pipeline import load
    from microplane.planning.plan import plan
    from microplane.runs.check import check
    from microplane.runs.evaluate import evaluate
    from microplane.runs.suites import evaluate_suites
    from microplane.runs.train import resume, train

__all__ = [
    "__version__",
    "attach",
    "attach_saved",
    "check",
    "compare",
    "evaluate",
    "evaluate_suites",
    "export",
    "load",
    "merge",
    "plan",
    "push",
    "resume",
    "train",
]

_HOMES = {
    "attach": ("microplane.adapters.attach", "attach"),
    "attach_saved": ("microplane.adapters.attach", "attach_saved"),
    "check": ("microplane.runs.check", "check"),
    "compare": ("microplane.comparison.compare", "compare"),
    "evaluate": ("microplane.runs.evaluate", "evaluate"),
    "evaluate_suites": ("microplane.runs.suites", "evaluate_suites"),
    "export": ("microplane.exports.export", "export"),
    "load": ("microplane.inference.pipeline", "load"),
    "merge": ("microplane.adapters.merge", "merge"),
    "plan": ("microplane.planning.plan", "plan"),
    "push": ("microplane.exports.push", "push"),
    "resume": ("microplane.runs.train", "resume"),
    "train": ("microplane.runs.train", "train"),
}


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when something of it is asked for."""
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'microplane' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("microplane")
    except PackageNotFoundError:
        return "not installed"
