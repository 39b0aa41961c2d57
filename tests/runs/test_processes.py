"""`microplane train` on several processes: the same run as on one, told once, ended by whatever ends one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from microplane.cli.processes import _without_processes
from tests.tiny import save_tiny_folder

ROOT = Path(__file__).parents[2]
KNOBS = {
    "train.eval_every": 4,
    "train.lr": 5e-3,
    "train.threads": 1,
    "eval.rows": 0,
    "model.dtype": "float32",
    "model.device": "cpu",
}


def test_the_option_is_not_passed_on():
    given = ["train", "m", "d", "--processes", "2", "--name", "x", "--processes=3", "--set", "train.steps=2"]
    assert _without_processes(given) == ["train", "m", "d", "--name", "x", "--set", "train.steps=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and rows; the two-process tests share the caches of one home."""
    folder = tmp_path_factory.mktemp("processes")
    save_tiny_folder(folder / "model")
    rows = [{"prompt": f"turn on lamp {n} {'x' * (n % 7)}", "completion": f"on {n * 37 % 100}"} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(*arguments: str, launcher: tuple[str, ...] = (), **knobs: object) -> list[str]:
    sets = [f"--set={name}={value}" for name, value in {**KNOBS, **knobs}.items()]
    return [sys.executable, *launcher, "-m", "microplane", "train", *arguments, *sets]


def environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return env | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def run(place: Path, *arguments: str, code: int = 0, launcher: tuple[str, ...] = (), **knobs: object) -> str:
    """What a command writes on both streams."""
    given = command(*arguments, launcher=launcher, **knobs)
    done = subprocess.run(
        given, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def losses(place: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (place / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("validation_loss")) for line in lines]


def result_of(place: Path, name: str) -> dict:
    return json.loads((place / "runs" / name / "result.json").read_text())


@pytest.mark.slow
def test_the_same_run_as_on_one_process(place):
    """By either launcher; told once, and continued by any number of processes."""
    steps = {"train.steps": 8}
    run(place, "model", "rows.jsonl", "--name=one", **steps)
    said = run(place, "model", "rows.jsonl", "--name=two", "--processes=2", **steps)
    assert said.count("step 4: validation loss") == 1
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run(place, "model", "rows.jsonl", "--name=three", launcher=torchrun, **steps)
    assert losses(place, "two") == pytest.approx(losses(place, "one"), rel=1e-5)
    assert losses(place, "three") == losses(place, "two")
    results = [result_of(place, name) for name in ("one", "two")]
    assert [result["environment"]["processes"] for result in results] == [1, 2]
    assert results[0]["train"]["best_step"] == results[1]["train"]["best_step"]
    for name, count in (("one", 3), ("two", 1)):
        resume = [sys.executable, "-m", "microplane", "train", "--resume", f"runs/{name}", f"--processes={count}"]
        subprocess.run([*resume, "--set=train.steps=12"], cwd=place, env=environment(), check=True, timeout=300)
    assert len(losses(place, "one")) == 16
    assert losses(place, "one") == pytest.approx(losses(place, "two"), rel=1e-4)


def wait_for(metrics: Path, step: int) -> None:
    """Until a run has written of a step."""
    end = time.monotonic() + 120
    while not (metrics.exists() and f'"step": {step}' in metrics.read_text()):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run(place):
    """With its reason, within a minute; what was saved goes on, on one process too, with the same rows."""
    steps = {"train.steps": 3000, "train.eval_every": 20}
    given = command("model", "rows.jsonl", "--name=killed", "--processes=2", **steps)
    launcher = subprocess.Popen(given, cwd=place, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    metrics = place / "runs" / "killed" / "metrics.jsonl"
    wait_for(metrics, 25)
    ranks = {process.environ()["RANK"]: process for process in psutil.Process(launcher.pid).children()}
    ranks["1"].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, said = launcher.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert launcher.returncode == 1
    assert b"another process has ended without a word" in said
    assert b"process 1 was ended by SIGKILL" in said
    result = result_of(place, "killed")
    assert result["status"] == "failed"
    assert "another process has ended" in result["error"]
    resume = [sys.executable, "-m", "microplane", "train", "--resume", "runs/killed", "--set=train.steps=40"]
    subprocess.run(resume, cwd=place, env=environment(), check=True, timeout=300, capture_output=True)
    steps_made = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in steps_made if "loss" in line] == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_hangs_ends_the_run_within_a_minute(place, rank):
    name = f"frozen-{rank}"
    given = command("model", "rows.jsonl", f"--name={name}", "--processes=2", **{"train.steps": 30000})
    launcher = subprocess.Popen(given, cwd=place, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_for(place / "runs" / name / "metrics.jsonl", 8)
    ranks = {process.environ()["RANK"]: process for process in psutil.Process(launcher.pid).children()}
    ranks[rank].send_signal(signal.SIGSTOP)
    frozen = time.monotonic()
    _, said = launcher.communicate(timeout=90)
    assert time.monotonic() - frozen < 60
    assert launcher.returncode not in (0, 3)
    assert f"process {rank} was ended by SIGKILL".encode() in said
    if rank == "1":  # who is first writes the reason
        assert "process 1 on" in result_of(place, name)["error"]
        assert "has not answered for 36 seconds" in result_of(place, name)["error"]


@pytest.mark.slow
def test_ctrl_c_saves_and_ends_all(place):
    given = command("model", "rows.jsonl", "--name=stopped", "--processes=2", **{"train.steps": 3000})
    launcher = subprocess.Popen(given, cwd=place, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    metrics = place / "runs" / "stopped" / "metrics.jsonl"
    wait_for(metrics, 5)
    launcher.send_signal(signal.SIGTERM)
    _, said = launcher.communicate(timeout=90)
    assert launcher.returncode == 3, said
    assert said.count(b"stopping after this step") == 1
    assert result_of(place, "stopped")["status"] == "stopped"


@pytest.mark.slow
def test_what_several_processes_cannot_do(place):
    """One message each, and the exit code of an error."""
    few = run(place, "model", "rows.jsonl", "--processes=2", code=1, **{"train.batch_size": 1})
    assert "there are more processes (2) than rows in a step (1)" in few
    assert few.count("error:") == 1
    same = command("model", "rows.jsonl", "--name=other")
    (place / "other.jsonl").write_text((place / "rows.jsonl").read_text().replace("turn on", "switch on"))
    other = command("model", "other.jsonl", "--name=other")
    env = environment() | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29519"}
    first, second = (
        subprocess.Popen(given, cwd=place, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank, given in enumerate((same, other))
    )
    told, silent = first.communicate(timeout=120)[1], second.communicate(timeout=120)[1]
    assert "error: the processes do not have the same data, model and versions: train rows is" in told
    assert "error:" not in silent
    assert (first.returncode, second.returncode) == (1, 1)


@pytest.mark.slow
def test_of_a_sharded_run_no_process_holds_whole_weights(place):
    given = command("model", "rows.jsonl", "--name=shares", "--method=full", **{"train.steps": 2, "train.shard": True})
    given[given.index("microplane")] = "tests.training.whole_weights"
    env = environment() | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29523"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    ranks = [
        subprocess.Popen(given, cwd=place, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for said in [rank.communicate(timeout=240)[1] for rank in ranks]:
        assert [line for line in said.splitlines() if "alive" in line] == ["whole weights alive: 0"] * 2, said
