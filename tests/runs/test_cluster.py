"""The commands of docs/cluster.md, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.test_processes import environment, place, result_of  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_commands_of_the_page_work(place):  # noqa: F811
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    commands = re.findall(r"```bash\n(.*?)```", page, re.S)
    assert len(commands) == 5
    (place / "knobs.yaml").write_text(
        "train: {steps: 8, eval_every: 4, threads: 1}\neval: {rows: 0}\nmodel: {dtype: float32, device: cpu}\n"
    )
    tools = place / "bin"
    tools.mkdir()
    for name, module in (("microplane", "microplane"), ("torchrun", "torch.distributed.run")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (tools / name).chmod(0o755)
    env = environment() | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        quick = command.replace("train model rows.jsonl", "train model rows.jsonl --config knobs.yaml")
        quick = quick.replace("train.epochs=2", "train.steps=10")
        subprocess.run(["bash", "-ec", quick], cwd=place, env=env, check=True, timeout=300)
    for name, steps in (("two", 10), ("three", 8), ("parts", 8), ("nodes", 8)):
        result = result_of(place, name)
        assert (result["status"], result["train"]["steps"]) == ("success", steps)
        assert result["environment"]["processes"] == 2
