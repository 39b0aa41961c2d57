"""What a run writes line by line: metrics.jsonl and speed.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microplane.files import write_aside

Record = dict[str, Any]


class Log:
    """metrics.jsonl holds what the configuration decides, speed.jsonl what the clock says."""

    def __init__(self, folder: Path, on_record: Callable[[Record], None]):
        folder.mkdir(parents=True, exist_ok=True)
        self.metrics, self.speed = folder / "metrics.jsonl", folder / "speed.jsonl"
        self.on_record = on_record
        self.bytes = 0

    def rewind(self, size: int, step: int) -> None:
        """Forget what was written after a checkpoint: it will be written again."""
        self.metrics.touch()
        os.truncate(self.metrics, size)
        self.bytes = size
        kept = read_lines(self.speed) if step and self.speed.exists() else []
        lines = [json.dumps(record) + "\n" for record in kept if record.get("step", step + 1) <= step]
        write_aside(self.speed, "".join(lines).encode())

    def write(self, record: Record, clock: Record) -> None:
        line = json.dumps(record) + "\n"
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(line)
        self.bytes += len(line.encode())
        if "seconds" in clock:
            with self.speed.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clock) + "\n")
        self.on_record(record | clock)


class NoLog:
    """The log of a process that does not write."""

    bytes = 0

    def rewind(self, size: int, step: int) -> None:
        pass

    def write(self, record: Record, clock: Record) -> None:
        pass


def read_log(folder: Path) -> list[Record]:
    """What a run has written so far, as `on_record` saw it; but for the words on a validation."""
    clock = {line["step"]: line for line in read_lines(folder / "speed.jsonl")}
    return [line | (clock[line["step"]] if "loss" in line else {}) for line in read_lines(folder / "metrics.jsonl")]


def read_lines(path: Path) -> list[Record]:
    """The whole lines of a JSONL file of ours; a last line cut off by a kill is left out."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if isinstance(record, dict):
            records.append(record)
    return records
