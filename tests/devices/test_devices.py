"""A run computes wherever its model is: on a pretended device nothing meets that lies apart, and little is waited for.

The device is torch's accelerator for the whole process (tests/devices/pretend.py), so all runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from microplane.errors import ConfigError
from microplane.methods import METHODS, make_method
from microplane.methods.method import attach_method
from microplane.objectives import HEAD_OBJECTIVES
from tests.devices.cases import cases
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
FEW += ["llama-tied/lora/nf4/int8", "marian/prompt"]
MOST = 2  # times that the host waits for the device in a step: once for the losses, once for the norm
WAITS_MORE = {  # method -> where, and why it must
    "scalora": ("methods/scalora.py", "whether a rescaling has a solution, every `interval` steps"),
    "nb-lora": ("nn/ops/cayley.py", "whether the columns came out orthonormal, at each transform"),
}

MASKS = ("models/external/", "transformers asks of each mask whether it hides anything, once for each micro-batch")


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
    family, method = found["case"].split("/")[:2]
    allowed = [WAITS_MORE[method][0]] if method in WAITS_MORE else []
    if family.partition("+")[0] in THROUGH_TRANSFORMERS:
        allowed.append(MASKS[0])
    for waits in there["waits"]:
        waited = {place: count for place, count in waits.items() if not place.startswith(tuple(allowed))}
        assert 0 < sum(waited.values()) <= MOST, f"{found['case']} waits for the device: {waited}"


def test_a_few_methods_and_families_step_on_a_device():
    found = [json.loads(line) for line in run("matrix", *FEW).splitlines()]
    assert {one["case"] for one in found} == set(FEW)
    for one in found:
        check(one)


PARTS = 8  # of all cases, some minutes each


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_family_with_every_method_steps_on_a_device(part):
    wanted = [case.name for case in cases()][part::PARTS]
    found = [json.loads(line) for line in run("matrix", *wanted).splitlines()]
    assert [one["case"] for one in found] == wanted
    for one in found:
        check(one)


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
