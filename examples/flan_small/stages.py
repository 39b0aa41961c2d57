"""Stages that are done once: what each made and how long it took stands in stages.json, also after a kill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microplane.config.knobs import RunKnobs
from microplane.data.progress import Watcher
from microplane.files import write_aside
from microplane.runs.train import Run, train


class StoppedError(Exception):
    """Somebody pressed Ctrl-C, or ended the process by SIGTERM, and the run has saved where it is."""


class Stages:
    """The stages of an experiment below one folder."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print):
        self.file, self.say = folder / "stages.json", say
        self.records: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def do(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` returns; it is not called where the stage is done. Seconds add up over interruptions."""
        record = self.records.setdefault(name, {"seconds": 0.0, "starts": 0, "load": 0.0, "done": False})
        if record["done"]:
            self.say(f"{name}: done before, in {record['seconds']:.0f} s")
            return record["made"]
        record["starts"] += 1
        record["load"] = round(os.getloadavg()[0], 1)  # of the whole machine: says whether other work ran beside it
        self._write()
        self.say(f"{name} ...")
        before, started = record["seconds"], time.time()
        try:
            made = work()
            record |= {"made": made, "done": True}
        finally:
            record["seconds"] = before + time.time() - started
            self._write()
        self.say(f"{name}: {record['seconds']:.0f} s")
        return made

    def seconds(self) -> dict[str, float]:
        return {name: round(record["seconds"], 1) for name, record in self.records.items()}

    def _write(self) -> None:
        write_aside(self.file, json.dumps(self.records, indent=1).encode())


def train_run(knobs: RunKnobs, watch: Watcher) -> Run:
    """A Microplane run, begun or continued.

    Raises:
        StoppedError: if it was interrupted.
    """
    begun = (Path(knobs.runs) / (knobs.name or "") / "run.yaml").is_file()
    done = train(knobs=knobs, resume=begun, watch=watch)
    if done.result["status"] == "stopped":
        raise StoppedError(f"stopped in {done.folder}; the same command goes on from there")
    return done


def run_facts(done: Run) -> dict[str, Any]:
    """What the results say of a run."""
    train = done.result["train"]
    facts = {name: train[name] for name in ("steps", "tokens", "trained_tokens", "validation_loss", "best_step")}
    losses = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    curve = [[line["step"], line["validation_loss"]] for line in losses if "validation_loss" in line]
    rows = done.result["data"]["rows"]["train"]
    return {**facts, "rows": rows, "tokens_per_second": train["tokens_per_second"], "curve": curve}
