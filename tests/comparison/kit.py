"""Real comparisons of a tiny model, in seconds: trials run in this process where it is not the processes that count."""

from __future__ import annotations

import json
from pathlib import Path

import microplane
from microplane.comparison.trials import Outcome, Trials
from microplane.config.build import assemble
from microplane.errors import MicroplaneError
from microplane.files import cache_dir
from tests.tiny import SHALLOW, save_tiny_folder

SETS = {"train.batch_size": 4, "train.threads": 1, "eval.max_new_tokens": 4}


def rows(count: int = 100) -> list[dict[str, str]]:
    return [{"prompt": f"say {'abcdefg'[i % 7] * 3} {i}", "completion": "abcdefg"[i % 7]} for i in range(count)]


def write(folder: Path, name: str, lines: list[dict[str, str]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / name)


def place(folder: Path) -> tuple[str, str]:
    """A model and its rows."""
    return str(save_tiny_folder(folder / "model", **SHALLOW)), write(folder, "rows.jsonl", rows())


def own_cache(monkeypatch, folder: Path) -> None:
    """An empty cache, but for the compiled operations, which take half a minute to make."""
    compiled = cache_dir() / "native"
    (folder / "cache").mkdir()
    if compiled.is_dir():
        (folder / "cache" / "native").symlink_to(compiled)
    monkeypatch.setenv("MICROPLANE_CACHE", str(folder / "cache"))


def in_this_process(monkeypatch, fails=lambda trial: None) -> list[str]:
    """Trials are trained here, by the same arguments as their own process would be; returns the names of those made.

    Args:
        fails: why a trial fails, or None.
    """
    made: list[str] = []

    def make(self: Trials, trial) -> Outcome:
        made.append(trial.name)
        if reason := fails(trial):
            return Outcome(trial, self.place(trial), {}, reason)
        command = self.command(trial)
        assert command[1:5] == ["-m", "microplane", "train", "--quiet"]
        try:
            if "--resume" in command:
                microplane.resume(command[-1])
            else:
                at = {name: command.index(name) + 1 for name in ("--config", "--name")}
                sets = [command[place + 1] for place, part in enumerate(command) if part == "--set"]
                config = Path(command[at["--config"]])
                microplane.train(knobs=assemble(config, {"name": command[at["--name"]]}, sets))
        except MicroplaneError as error:
            return Outcome(trial, self.place(trial), {}, str(error))
        found = self._finished(trial)
        assert found is not None
        return found

    monkeypatch.setattr(Trials, "_make", make)
    return made


def table(folder: Path) -> dict:
    """What a comparison came to, without what the clock and the place say."""
    result = json.loads((folder / "comparison.json").read_text())
    clock = ("seconds", "tokens_per_second", "trained_tokens_per_second", "peak_memory_bytes", "speed")
    result["methods"] = [{k: v for k, v in row.items() if k not in clock} for row in result["methods"]]
    keep = ("answer", "notes", "metric", "methods", "failed", "baselines", "search", "curves", "rows", "learning_curve")
    lines = ("method", "stage", "lr", "steps", "seed", "status", "reason", "validation_loss", "tokens", "best_step")
    ledger = sorted(tuple(str(line[name]) for name in lines) for line in result["ledger"])
    return {name: result[name] for name in keep} | {"ledger": ledger}
