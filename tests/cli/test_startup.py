"""What a process of a run costs beside the run: what it imports, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.comparison.kit import place, write

ATTENDED = """
import atexit, sys
import microplane
from microplane import __main__
labelled = sys.argv.pop()
knobs = {"runs": labelled + "-runs", "train.steps": 4, "train.threads": 1, "eval.rows": 2}
microplane.train(sys.argv[3], labelled, set=knobs)
atexit.register(lambda: print("left in order", "torch._dynamo" in sys.modules, flush=True))
sys.argv = ["microplane", *sys.argv[1:]]
__main__.program()
"""


def test_torchs_compiler_is_not_imported_and_the_end_is_in_order(tmp_path):
    """It takes a process two to three seconds, and nothing of it is used: neither of answers nor of labels, with a new
    head and a bag of words beside it."""
    model, data = place(tmp_path)
    texts = [{"text": f"{'ab' * (i % 2)}cd {i}", "label": i % 2} for i in range(40)]
    labelled = write(tmp_path, "labelled.jsonl", texts)
    sets = [f"runs={tmp_path / 'runs'}", "train.steps=4", "train.threads=1", "eval.rows=2"]
    command = [sys.executable, "-c", ATTENDED, "train", "--quiet", model, data]
    command += [*(part for one in sets for part in ("--set", one)), labelled]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run, left = done.stdout.splitlines()
    assert run.endswith("model-lora-rows")
    assert left == "left in order False"


FORECAST = """
import sys
import microplane
method, dtype = sys.argv[3:]
knobs = {"runs": sys.argv[2] + "-runs", "train.steps": 2, "train.threads": 1, "eval.rows": 0}
knobs |= {"model.dtype": dtype}
microplane.train(sys.argv[1], sys.argv[2], method=method, set=knobs)
print(any(name in sys.modules for name in ("torch._dynamo", "sympy", "huggingface_hub.hf_api")))
"""


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("dora", "int8"), ("lora", "float32"), pytest.param("qlora", "nf4", marks=pytest.mark.slow)],
)
def test_a_forecast_does_not_import_it(tmp_path, method, dtype):
    """It attaches and quantises on the meta device, where some operations are Python's; nor does a run of a local
    model open the Hub's client, or compare shapes by sympy."""
    model, data = place(tmp_path)
    command = [sys.executable, "-c", FORECAST, model, data, method, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"


def test_an_error_keeps_its_exit_code(tmp_path):
    command = [sys.executable, "-m", "microplane", "train", str(tmp_path / "none"), str(tmp_path / "none.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "error" in done.stderr
