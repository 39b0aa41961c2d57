"""The demo: a 135-million-parameter model learns to turn home commands into JSON."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from microplane.cli.terminal import Terminal, make_console
from microplane.config.build import assemble
from microplane.errors import ConfigError, DataError
from microplane.hardware import process_started
from microplane.runs.train import Run, train

LANGUAGES = ("en", "fr", "vi")


def run_demo(lang: str, rows: int, assignments: Sequence[str] = ()) -> Run:
    """Fetch, build the data, measure, train, measure again, and show before and after."""
    if lang not in LANGUAGES:
        raise ConfigError(f"--lang {lang}: there are {', '.join(LANGUAGES)}")
    terminal = Terminal(make_console())
    terminal.say(f"Building the home-commands data ({lang}) from the package home-assistant-intents ...")
    folder = Path("runs") / "data" / f"home-commands-{lang}"
    summary = recipe().build(folder, lang=lang, train_rows=rows, test_rows=300)
    terminal.say(f"{summary['train_rows']} commands to train on, {summary['test_rows']} held out, in {folder}")
    try:
        done = train(
            knobs=assemble(given=demo_knobs(folder), assignments=assignments), watch=terminal, started=process_started()
        )
    finally:
        terminal.close()
    show_samples(terminal, done.result["samples"][:5])
    return done


def demo_knobs(folder: Path) -> dict[str, Any]:
    """What the demo sets; everything else is a default."""
    return {
        "model.name": "smollm2",
        "method.name": "lora",
        "data.train": str(folder),
        "data.system": "",
        "data.validation_rows": 120,
        "eval.rows": 300,
    }


def show_samples(terminal: Terminal, samples: Sequence[dict[str, str]]) -> None:
    for sample in samples:
        terminal.say("")
        terminal.say(f"  command: {sample['prompt'].strip()}")
        terminal.say(f"  before:  {' '.join(sample['before'].split())[:100] or '(nothing)'}")
        terminal.say(f"  after:   {' '.join(sample['after'].split())[:160]}")
        right = sample["after"].strip() == sample["target"].strip()
        terminal.say("  right:   yes" if right else f"  wanted:  {sample['target']}")
    terminal.say("")


def recipe() -> ModuleType:
    """examples/home_commands/build.py: from the source tree, or from inside the installed package."""
    package = Path(__file__).parents[1]
    for folder in (package / "_home_commands", package.parents[1] / "examples" / "home_commands"):
        if (folder / "build.py").is_file():
            spec = importlib.util.spec_from_file_location("microplane_home_commands", folder / "build.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up there
            spec.loader.exec_module(module)
            return module
    raise DataError("the recipe of the demo, home_commands/build.py, is not part of this installation")
