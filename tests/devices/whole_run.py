"""A whole run whose device is the pretended one, and the same continued on the CPU; prints what was said and found.

python -m tests.devices.whole_run FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["MICROPLANE_NATIVE"] = "0"

import torch

import microplane
from microplane.config.build import build
from microplane.config.knobs import RunKnobs
from microplane.data.progress import Silent
from microplane.errors import MicroplaneError
from tests.devices import pretend
from tests.tiny import save_tiny_folder

KNOBS = {
    "data.max_length": 128,
    "data.validation_share": 0.2,
    "train.steps": 4,
    "train.eval_every": 2,
    "train.threads": 1,
    "train.lr": 1e-3,
    "eval.rows": 2,
    "eval.max_new_tokens": 4,
    "model.dtype": "float32",
}


class Telling(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def rows() -> list[dict[str, str]]:
    return [{"prompt": f"turn on lamp {number}", "completion": f"on {number}"} for number in range(20)]


def main(folder: Path) -> None:
    pretend.register()
    model, watch, found = save_tiny_folder(folder / "model"), Telling(), {}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    given = {"runs": str(folder / "runs"), "name": "one", **KNOBS}
    on_cpu = microplane.train(model, folder / "rows.jsonl", set={**given, "name": "cpu", "model.device": "cpu"})
    run = microplane.train(model, folder / "rows.jsonl", set=given, watch=watch)
    found = {"said": watch.said, "environment": run.result["environment"], "status": run.result["status"]}
    found["validation"] = [one.result["train"]["validation_loss"] for one in (on_cpu, run)]
    found["checks"] = {check["name"]: check["passed"] for check in run.result["checks"]}
    pipeline = run.load()
    found["opened"] = [str(pipeline.model.device), pipeline.generate("turn on lamp 3", max_new_tokens=3)]
    found["on_cpu"] = microplane.load(run.folder, device="cpu").generate("turn on lamp 3", max_new_tokens=3)
    again = Telling()
    resumed = microplane.resume(run.folder, again, {"train.steps": 6, "model.device": "cpu"})
    found["resumed"] = {"said": again.said, "device": resumed.result["environment"]["device"]}
    found["steps"] = resumed.result["train"]["steps"]
    try:
        build(RunKnobs, {"model": {"device": "cuda"}})
        microplane.train(model, folder / "rows.jsonl", set={**given, "name": "two", "model.device": "cuda:1"})
    except MicroplaneError as error:
        found["refused"] = str(error)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
