"""A run computes wherever its model is: on a pretended device nothing meets that lies apart, and little is waited for.

The device is torch's accelerator for the whole process (tests/devices/pretend.py), so all runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from microplane.errors import ConfigError
from microplane.methods import METHODS, make_method
from microplane.methods.method import attach_method
from microplane.objectives import HEAD_OBJECTIVES
from tests.devices.cases import ROWS, cases
from tests.devices.families import (
    BASES,
    CONTRACT_REFUSED,
    FAMILIES,
    REFUSED,
    THROUGH_TRANSFORMERS,
    built_types,
    model_types,
)

ROOT = Path(__file__).parents[2]
FEW = ["llama-tied/lora", "t5/full/recompute=cheap", "bert/head-only", "marian/lora/0.2/label_smoothing=0.1"]
FEW += ["llama-tied/lora/nf4/int8", "marian/prompt", "llama-tied/last-n/1", "llama-tied/lora/520 tokens"]
FEW += ["llama-tied/nb-lora"]
MOST = 2  # times that the host waits for the device in a step: once for the losses, once for the norm
RESCALES = "methods/scalora.py"  # waits for whether a rescaling has a solution: the first of every `interval` steps
MASKS = "models/external/"  # waits where transformers asks a mask whether it hides anything, once for each micro-batch


def run(module: str, *arguments: str) -> str:
    """What a module of these tests prints, in a process of its own."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.devices.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def check(found: dict) -> None:
    """A case ran, gave what the CPU gives, and waited no more than it may."""
    assert "error" not in found, f"{found['case']}: {found['error']}"
    here, there = found["cpu"], found["device"]
    for name, apart in (("losses", 1e-3), ("probe", 1e-2)):  # a probe is a sum of logits, of which most cancel out
        assert there[name] == pytest.approx(here[name], rel=1e-4, abs=apart), f"{found['case']}: {name}"
    assert there["validation"] == pytest.approx(here["validation"], rel=1e-5), found["case"]
    assert there["moved"] == here["moved"]
    assert np.allclose(*(np.hstack(one["written"]) for one in (there, here)), atol=1e-3), found["case"]
    assert there["kept"] == pytest.approx(here["kept"], rel=1e-4, abs=1e-3), found["case"]
    family, method = found["case"].split("/")[:2]
    through = family.partition("+")[0] in THROUGH_TRANSFORMERS
    for step, waits in enumerate(there["waits"]):
        more = [RESCALES] if method == "scalora" and step == 0 else []
        more += [place for place, count in waits.items() if through and place.startswith(MASKS) and count <= ROWS]
        waited = {place: count for place, count in waits.items() if not place.startswith(tuple(more))}
        assert 0 < sum(waited.values()) <= MOST, f"{found['case']} waits for the device: {waited}"


def test_a_few_methods_and_families_step_on_a_device():
    found = [json.loads(line) for line in run("matrix", *FEW).splitlines()]
    assert {one["case"] for one in found} == set(FEW)
    for one in found:
        check(one)


FILES = "what files hold"
PARTS = 8  # of all cases, some minutes each


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_family_with_every_method_steps_on_a_device(part):
    wanted = [case.name for case in cases()][part::PARTS]
    found = [json.loads(line) for line in run("matrix", *wanted).splitlines()]
    assert [one["case"] for one in found] == wanted
    for one in found:
        check(one)


ON_THE_CPU = {  # functions of the models that have to do with tensors and never run on a device, and why
    "models/fused_step.py": "the compiled step is the CPU's",
    "models/nomic_layout.py": FILES,
    **dict.fromkeys(("as_read", "read_weights", "load_weights", "read_net", "extra_weights_to_save"), FILES),
    **dict.fromkeys(("in_data_units", "refuse_format", "learn_in"), FILES),
    **dict.fromkeys(("layout", "meta_copy"), "made on the meta device, for names and shapes"),
    "models/external/class_head.py hidden_layer": "an empty answer",
}


@pytest.mark.slow
def test_what_the_models_compute_is_tried_on_the_device():
    """A tensor that a function makes on the wrong device is found where the function runs."""
    missed = json.loads(run("reached"))
    assert [name for name in missed if not ON_THE_CPU.keys() & {name, *name.split()}] == []


def test_the_matrix_has_every_family_method_and_task():
    """By the product's own lists, so that a new one has to be added; what is left out is refused with a reason."""
    assert built_types() == model_types()
    there = {(case.family, case.method["name"]) for case in cases()}
    left_out = {(method, family) for family in FAMILIES for method in METHODS if (family, method) not in there}
    assert left_out <= REFUSED.keys()
    kinds = {FAMILIES[family].build().KIND for family in BASES}
    assert kinds == {"decoder", "encoder", "encoder-decoder"}
    assert {family for family, _ in there if "+" in family} == {f"{a}+{b}" for a in BASES for b in HEAD_OBJECTIVES}


@pytest.mark.parametrize(("method", "family"), [pair for pair in REFUSED if pair not in CONTRACT_REFUSED])
def test_what_the_matrix_leaves_out_is_refused(method, family):
    with pytest.raises(ConfigError, match=REFUSED[method, family]):
        attach_method(make_method(method), FAMILIES[family].build())


def test_a_whole_run_on_a_device(tmp_path):
    """Chosen by itself and said; the same as on the CPU; opened on either; continued on the other; others refused."""
    found = json.loads(run("whole_run", str(tmp_path)))
    assert found["status"] == "success"
    assert all(passed is not False for passed in found["checks"].values()), found["checks"]
    assert found["environment"]["device"] == "pretend:0"
    assert [line for line in found["said"] if line.startswith("device")] == [
        "device    pretend:0, as torch sees it; --set model.device=cpu for the processor"
    ]
    one, other = found["validation"]
    assert one == pytest.approx(other, rel=1e-5)
    assert found["opened"] == ["pretend:0", found["on_cpu"]]
    assert found["resumed"]["device"] == "cpu"
    assert "goes on with another device: 'pretend' then, 'cpu' now" in found["resumed"]["said"]
    assert "the same to rounding from here on, and no longer to the bit" in found["resumed"]["said"]
    assert found["steps"] == 6
    assert "model.device = cuda:1: there is no such device here. There is: pretend:0, cpu" in found["refused"]


def benchmark(*arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "device.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_without_an_accelerator_its_benchmark_says_so():
    assert benchmark() == "torch sees no accelerator on this machine: nothing was measured\n"


@pytest.mark.slow
def test_the_benchmark_of_a_device(tmp_path):
    out = tmp_path / "device.json"
    said = benchmark("--device", "cpu", "--cases", "1", "--shapes", "tiny", "--out", str(out))
    assert "contract and parity: 1 of 1 cases passed" in said
    figures = json.loads(out.read_text())["speed"]
    assert [one["method"] for one in figures] == ["lora", "qlora", "full"]
    assert all(one["tokens_per_second"] > 0 for one in figures)
