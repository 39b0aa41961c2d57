"""Disks that are full or read-only, too little memory: patched at every write in turn, and on real mounts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from microplane.checkpoints import tensors
from microplane.models.files import load
from tests.bad_input.kit import BASE, MERGE, RESUME, Case, both, check_message, evaluate, remove, sets, train, write

RUN = train("--name", "x", *sets("method.rank=2"))
CASES = [
    Case(
        "a file in the place of the cache",
        train(),
        ("tokenised data cannot be written", "MICROPLANE_CACHE"),
        both(lambda here: shutil.rmtree(here / "cache"), write("cache", "")),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_places(microplane, case):
    microplane.check(case)


def result(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("metrics.jsonl", "adapter/adapter_model.safetensors")}


def at_call(number: int, original, fail):
    """A function that fails at one call of it, as a disk that is full for a moment."""
    calls = iter(range(1000))

    def function(*arguments, **named):
        kept = any(name in str(arguments[0]) for name in ("sums", "blocks", "count.json"))  # only remembered
        if not kept and next(calls) == number:
            fail()
        return original(*arguments, **named)

    return function


def full(*arguments, **named):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_safetensors(*arguments, **named):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def check_full_disk(microplane, here):
    """The message, and that the run ends the same once there is room."""
    told = microplane.refuses(*RUN)
    assert "No space left on device" in told.error
    assert "Make room" in told.error
    begun = (here / "runs/x/run.yaml").is_file()
    code, _, err = microplane.run(*(["train", "--resume", "runs/x"] if begun else RUN))
    assert code == 0, err
    assert result(here / "runs/x") == result(here / BASE)


@pytest.mark.parametrize("number", range(8))
def test_a_disk_that_is_full_at_any_file(microplane, here, monkeypatch, number):
    monkeypatch.setattr(Path, "write_bytes", at_call(number, Path.write_bytes, full))
    check_full_disk(microplane, here)


@pytest.mark.parametrize("number", range(4))
def test_a_disk_that_is_full_at_any_tensors(microplane, here, monkeypatch, number):
    monkeypatch.setattr(tensors, "save_file", at_call(number, tensors.save_file, full_for_safetensors))
    check_full_disk(microplane, here)


@pytest.mark.parametrize("number", range(7))
def test_a_run_that_is_continued_on_a_full_disk_loses_nothing(microplane, here, monkeypatch, number):
    """Two steps are to be made again; each write of theirs fails once."""
    whole = result(here / BASE)
    remove(f"{BASE}/resume/step-00000004")(here)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", at_call(number, Path.write_bytes, full))
        code, out, err = microplane.run(*RESUME)
    check_message(code, out, err, 1)
    code, _, err = microplane.run(*RESUME)
    assert code == 0, err
    assert result(here / BASE) == whole


def test_merging_onto_a_full_disk_leaves_nothing(microplane, monkeypatch):
    monkeypatch.setattr(load, "save_file", full_for_safetensors)
    told = microplane.refuses(*MERGE)
    assert told.error.startswith("out: No space left on device")
    assert told.new == []


def test_full_fine_tuning_onto_a_full_disk(microplane, monkeypatch):
    monkeypatch.setattr(load, "save_file", full_for_safetensors)
    told = microplane.refuses(*train("-m", "full"))
    assert "adapter/model.safetensors: No space left on device" in told.error


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied")]
)
@pytest.mark.parametrize("arguments", [RUN, MERGE, evaluate("--out", "new/answers.jsonl")], ids=lambda a: a[0])
def test_a_place_that_cannot_be_written_to(microplane, here, monkeypatch, arguments, number, says):
    microplane.run(*evaluate())  # so that its data is in the cache

    def refuse(path, *arguments, **named):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    told = microplane.refuses(*arguments)
    assert says in told.error
    assert "hoose another place" in told.error
    assert ".tmp" not in told.error
    assert told.new == []


def test_too_little_memory(microplane, monkeypatch):
    def greedy(*arguments, **named):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr("microplane.runs.train.measure", greedy)
    told = microplane.refuses(*train())
    assert "memory of this machine" in told.error
    assert "train.micro_tokens" in told.error


# Real mounts, in a namespace that ends with the process

DRIVER = """
import contextlib, io, json, os, subprocess, sys
from microplane.cli import app as cli

def ask(*arguments):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["microplane", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = stop.code
    return code, out.getvalue(), err.getvalue()

def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)

asked = json.load(sys.stdin)
told = {}
mount("-t", "tmpfs", "-o", "size=60k", "none", "small")
told["full"] = ask(*asked["full"])
told["left"] = [name for _, _, names in os.walk("small") for name in names if name.endswith(".tmp")]
mount("-o", "remount,size=8m", "small")
told["resumed"] = ask("train", "--resume", "small/x")
told["result"] = [open(f"small/x/{name}", "rb").read().hex() for name in asked["result"]]
mount("-t", "tmpfs", "-o", "ro", "none", "fixed")
mount("--bind", "runs", "runs")
mount("-o", "remount,ro,bind", "runs")
for name, arguments in asked["fixed"].items():
    told[name] = ask(*arguments)
os.environ["MICROPLANE_CACHE"] = "fixed"
told["cache"] = ask(*asked["cache"])
print(json.dumps(told))
"""


def namespace() -> list[str] | None:
    """A command that runs another where it may mount, if that is allowed here."""
    for flags in ("-m", "-rm"):
        command = ["unshare", flags]
        trial = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
        if shutil.which("unshare") and subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            return command
    return None


@pytest.fixture
def mounts(here) -> dict:
    """What commands said on a full and on a read-only file system."""
    command = namespace()
    if command is None:
        pytest.skip("mounting is not allowed here")
    for name in ("small", "fixed"):
        (here / name).mkdir()
    fixed = {
        "train": train(*sets("runs=fixed")),
        "name": train("--name", "new"),
        "merge": ["merge", BASE, "fixed/out"],
        "eval": evaluate("--out", "fixed/answers.jsonl"),
        "resume": RESUME,
        "report": ["report", BASE],
        "generate": ["generate", BASE, "hi", "--dtype", "float32", "--set", "max_new_tokens=2"],
    }
    asked = {"full": [*RUN, *sets("runs=small")], "cache": train(*sets("runs=small")), "fixed": fixed}
    asked["result"] = list(result(here / BASE))
    source = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [*command, sys.executable, "-c", DRIVER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        cwd=here,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_real_file_systems_that_are_full_or_read_only(mounts, here):
    check_message(*mounts["full"], code=1)
    assert "No space left on device" in mounts["full"][2]
    assert mounts["left"] == []
    assert mounts["resumed"][0] == 0, mounts["resumed"]
    assert mounts["result"] == [content.hex() for content in result(here / BASE).values()]
    says = {"train": "runs=FOLDER", "name": "runs=FOLDER", "merge": "fixed/out", "eval": "fixed/answers.jsonl"}
    says |= {"resume": BASE, "report": f"{BASE}/report.html"}
    for name, part in says.items():
        check_message(*mounts[name], code=1)
        assert "Read-only file system" in mounts[name][2]
        assert part in mounts[name][2]
        assert ".tmp" not in mounts[name][2]
    check_message(*mounts["cache"], code=1)
    assert "MICROPLANE_CACHE" in mounts["cache"][2]
    assert mounts["generate"][0] == 0, "reading needs no right to write"
