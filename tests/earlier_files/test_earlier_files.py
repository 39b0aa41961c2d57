"""Files that were written before modules and names moved still open, and compute the same to the bit.

What lies here was made by make.py on an earlier commit. Bits are compared where torch and the kind of processor are
those that made the files; elsewhere products are summed in another order, and numbers must be close.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import microplane
from microplane.errors import CheckpointError
from microplane.hardware import processor
from microplane.methods import METHODS
from microplane.models.heads import task_scores
from microplane.nn.ops import native
from microplane.nn.rows import Pairs, Rows

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text())
ADAPTERS = [(family, name) for family, names in EXPECTED["adapters"].items() for name in names]
MOVES = 1e-3  # the least distance between the scores of two adapters, far more than rounding


@cache
def vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), platform.machine())


@cache
def compiler() -> str:
    if shutil.which("c++") is None:  # another is used, which did not make the files
        return "none"
    done = subprocess.run(["c++", "--version"], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[0]


def to_the_bit(way: str) -> bool:
    """Whether this machine must give the very bits of the one that made the files."""
    here = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "vendor": vendor()}
    if way == "compiled":  # for this very processor, by this very compiler
        here |= {"processor": processor(), "compiler": compiler()}
    return here == EXPECTED["machine"][way]


def same(one: Tensor, other: Tensor, way: str) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) if to_the_bit(way) else torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def moved(text: str, to: Path) -> str:
    """A file's text with the place of its writing, which it names by absolute paths, turned into another."""
    return text.replace(f"{EXPECTED['out']}/", f"{to}/")


def copied(folder: str, to: Path) -> Path:
    """A folder of these in another place, its files as they are but for the places that they name.

    The files of a base name none; they must stay as they are, as an adapter knows their contents.
    """
    shutil.copytree(HERE / folder, to / folder)
    for file in (to / folder).rglob("*"):
        if file.suffix in (".json", ".yaml") and EXPECTED["out"] in (text := file.read_text()):
            assert file.name in ("method.json", "adapter_config.json", "run.yaml", "result.json")
            file.write_text(moved(text, to))
    return to / folder


@torch.no_grad()
def said(folder: Path, dtype: str) -> Tensor:
    """What the model in a folder says of the rows: logits (T, V), or the scores of its task head (B, C)."""
    model, ids = microplane.load(folder, dtype).model, EXPECTED["ids"]
    if model.task_head is not None:
        return task_scores(model, Rows.of(ids))
    if model.KIND != "encoder-decoder":
        return model.logits(model(Rows.of(ids)))
    halves = [(row[: len(row) // 2], [model.config.decoder_start, *row[len(row) // 2 :]]) for row in ids]
    return model.logits(model(Pairs(Rows.of([read for read, _ in halves]), Rows.of([own for _, own in halves]))))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    for family in EXPECTED["adapters"]:
        copied(family, folder)
    return folder


@pytest.fixture(params=["plain", "compiled"])
def way(request, monkeypatch) -> str:
    if request.param == "plain":
        monkeypatch.setenv("MICROPLANE_NATIVE", "0")
    else:
        monkeypatch.delenv("MICROPLANE_NATIVE", raising=False)
        if native.library() is None:
            pytest.skip("nothing can be compiled here")
    return request.param


@pytest.mark.parametrize(("family", "name"), ADAPTERS)
def test_an_adapter_opens_and_computes_the_same(family, name, way, place):
    wanted = load_file(HERE / family / "expected.safetensors")[f"{name}.{way}"]
    found = said(place / family / name, EXPECTED["adapters"][family][name]["dtype"])
    assert same(found, wanted, way), f"by {(found - wanted).abs().max()}"


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_base_opens_and_computes_the_same(family, way, place):
    wanted = load_file(HERE / family / "expected.safetensors")[f"base.{way}"]
    assert same(said(place / family / "base", "float32"), wanted, way)


@pytest.mark.parametrize("family", list(EXPECTED["adapters"]))
def test_each_adapter_says_something_of_its_own(family):
    """Otherwise the tests above would hold for an adapter that is opened and does nothing."""
    scores = {name: part for name, part in load_file(HERE / family / "expected.safetensors").items() if "plain" in name}
    for one, other in combinations(scores, 2):
        assert (scores[one] - scores[other]).abs().max() > MOVES, (one, other)


def test_every_method_that_there_was_is_there_and_has_a_file():
    written = {adapter["method"] for names in EXPECTED["adapters"].values() for adapter in names.values()}
    assert written <= set(METHODS)
    assert len(written) == 20


# ---------------------------------------------------------------------------------------------------- a stopped run


@pytest.mark.parametrize("case", list(EXPECTED["resume"]))
def test_a_stopped_run_goes_on_to_the_same_end_or_says_why_not(case, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_NATIVE", "0")
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    copied(EXPECTED["resume"][case]["family"], tmp_path)
    folder, straight = copied(f"resume/{case}/stopped", tmp_path), HERE / "resume" / case / "straight"
    names_what_is_there(folder, tmp_path)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    try:
        run = microplane.resume(folder)
    except CheckpointError as error:
        assert re.search(r"cannot be continued from .*, since these differ:\n  .+ then, .+ now", str(error))
        assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return
    assert run.result["status"] == "success"
    assert all(check["passed"] in (True, None) for check in run.result["checks"]), run.result["checks"]
    steps = [record["step"] for record in records(folder) if "loss" in record]
    assert steps == list(range(1, EXPECTED["resume"][case]["steps"] + 1))
    if to_the_bit("plain"):
        for now, then in zip(records(folder), records(straight), strict=True):  # validation has other batches now
            assert now.pop("validation_loss", 0) == pytest.approx(then.pop("validation_loss", 0), rel=1e-6)
            assert now == then
        found, wanted = (load_file(at / "adapter" / "adapter_model.safetensors") for at in (folder, straight))
        assert found.keys() == wanted.keys()
        assert all(same(found[name], wanted[name], "plain") for name in wanted)
    else:  # weights of no effect, as the biases of keys, go where rounding leads them; what is said must be close
        other = copied(f"resume/{case}/straight", tmp_path)
        assert torch.allclose(said(folder, "float32"), said(other, "float32"), rtol=1e-3, atol=1e-3)


def names_what_is_there(folder: Path, to: Path) -> None:
    """The copied run.yaml names model and data in their new place, so that nothing of the old one is read by chance."""
    knobs = yaml.safe_load((folder / "run.yaml").read_text())
    named = [Path(knobs["model"]["name"]), Path(knobs["data"]["train"]), Path(knobs["data"]["validation"])]
    assert all(path.exists() and path.is_relative_to(to) for path in named)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
