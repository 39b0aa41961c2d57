"""Trials on a Ray cluster: with a stand-in for Ray what is asked of it and said of it; with Ray itself, among the slow
tests, the table of one trial after another, also after ten times `kill -9`."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from microplane.comparison import ray_cluster
from microplane.comparison.plan import Trial
from microplane.comparison.processes import LostError
from microplane.comparison.ray_cluster import About, Process, about, cluster, trial
from microplane.comparison.trials import Trials
from microplane.errors import ConfigError, TrainingError
from tests.comparison.kit import SETS, place, table
from tests.comparison.test_kill import KILLS, command, trial_of


class RayError(Exception):
    pass


class TaskCancelledError(RayError):
    pass


class StandIn:
    """What is used of Ray: tasks run when they are asked for, on two machines of 4 and 16 cores."""

    exceptions = SimpleNamespace(RayError=RayError, TaskCancelledError=TaskCancelledError)
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(
            NodeAffinitySchedulingStrategy=lambda node, soft: SimpleNamespace(id=node)
        )
    )

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []
        self.ended = False
        self.answers: dict[str, Any] = {}  # by machine, in place of what a task says

    def is_initialized(self) -> bool:
        return False

    def init(self, **how: Any) -> None:
        self.how = how

    def shutdown(self) -> None:
        self.ended = True

    def nodes(self) -> list[dict[str, Any]]:
        cores = {"one": 4.0, "two": 16.0, "dead": 64.0}
        return [
            {"NodeID": n, "NodeManagerAddress": n, "Alive": n != "dead", "Resources": {"CPU": c}}
            for n, c in cores.items()
        ]

    def remote(self, function: Any) -> Any:
        def options(**given: Any) -> Any:
            self.options.append(given)
            where = getattr(given.get("scheduling_strategy"), "id", None)
            return SimpleNamespace(remote=lambda *what: self.answers.get(str(where)) or function(*what))

        return SimpleNamespace(options=options)

    def wait(self, tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks, []

    def get(self, task: Any, timeout: float = 0.0) -> Any:
        if isinstance(task, Exception):
            raise task
        return task


@pytest.fixture
def ray(monkeypatch):
    standing = StandIn()
    monkeypatch.setattr(ray_cluster, "_ray", lambda: standing)
    return standing


@pytest.mark.parametrize(("at_once", "threads"), [(1, 16), (2, 8), (3, 5), (5, 4), (6, 3), (20, 1), (99, 1)])
def test_each_trial_has_the_cores_that_so_many_can_have(ray, at_once, threads):
    with cluster("auto", at_once, "cpu") as found:
        assert (found.at_once, found.threads) == (at_once, threads)


def test_one_trial_a_machine_unless_it_is_said_and_the_connection_ends(ray):
    with cluster("auto", None, "cpu") as found:
        assert found.at_once == 2
        assert not ray.ended
    assert ray.ended


def test_a_task_is_the_trials_process_with_its_exit_code_and_its_errors(ray, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_NOTED", "here")
    code = "import os, sys; print('said', os.environ['MICROPLANE_NOTED'], file=sys.stderr); sys.exit(3)"
    with cluster("auto", 2, "cpu") as found:
        process = found.begin(["another python", "-c", code], tmp_path / "log.txt")
        assert process.wait(1.0) == 3
    assert (tmp_path / "log.txt").read_text() == "said here\n"
    assert ray.options == [{"num_cpus": 8, "num_gpus": 0, "max_retries": 0}]


def test_what_cancels_a_task_has_its_process_save_and_end(tmp_path, monkeypatch):
    saved = tmp_path / "saved"
    code = f"""
import signal, sys, time, pathlib
def save(*_): pathlib.Path({str(saved)!r}).touch(); sys.exit(130)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(tmp_path / "up")!r}).touch()
time.sleep(60)"""
    monkeypatch.setattr(ray_cluster, "POLL", 0.01)

    def cancelled(self: Any, timeout: float) -> None:
        if (tmp_path / "up").exists():
            monkeypatch.undo()
            raise KeyboardInterrupt
        raise subprocess.TimeoutExpired("", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", cancelled)
    with pytest.raises(KeyboardInterrupt):
        trial([sys.executable, "-c", code], str(tmp_path / "log.txt"), {})
    assert saved.exists()


@pytest.mark.parametrize(("task", "code"), [(0, 0), (-9, -9), (TaskCancelledError(), -signal.SIGINT)])
def test_what_a_task_comes_to(task, code):
    assert Process(StandIn(), task).wait(1.0) == code


def test_a_machine_that_is_lost_is_tried_once_more(tmp_path):
    said: list[str] = []
    lost = Process(StandIn(), RayError("the node died"))
    machines = SimpleNamespace(at_once=2, threads=1, begin=lambda command, log: lost)
    made = Trials(tmp_path, SimpleNamespace(), SimpleNamespace(say=said.append, progress=None), machines)  # type: ignore[arg-type]
    made.command = lambda trial: []  # type: ignore[method-assign]
    with pytest.raises(LostError):
        lost.wait(1.0)
    with pytest.raises(TrainingError, match=r"lost twice \(the node died\).*--resume"):
        made.run(Trial("lora", "short", 1e-3, 4))
    assert len(said) == 1
    assert not made.ledger
    assert not made.running


def test_machines_that_cannot_do_it_are_told_before_the_first_trial(ray, tmp_path):
    seen = tmp_path / "plan.json"
    seen.write_text("{}")
    own = about([seen])
    with cluster("auto", 2, "cpu") as found:
        found.check([seen, tmp_path])
        ray.answers["two"] = About(own.versions, {str(seen): (False, b"")})
        with pytest.raises(ConfigError, match=r"two does not see .*plan.json.*shared file system"):
            found.check([seen])
        ray.answers["two"] = About({**own.versions, "torch": "1.0"}, own.files)
        with pytest.raises(ConfigError, match="two has torch 1.0"):
            found.check([seen])
        ray.answers["one"] = RayError("No module named 'microplane'")
        with pytest.raises(ConfigError, match="one cannot run trials; is microplane there"):
            found.check([seen])


def test_an_address_where_nothing_answers_is_told_at_once(ray):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=f"--ray {address}: no Ray cluster answers there"),
            cluster(address, 1, "cpu"),
        ):
            pass
    assert not hasattr(ray, "how")


def test_without_ray_it_is_said_how_to_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'microplane\[ray\]'"), cluster("local", 1, "cpu"):
        pass


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("auto", 1), ("cuda", 1)])
def test_each_trial_gets_a_gpu_where_there_are_some(ray, tmp_path, device, gpus, monkeypatch):
    nodes = [{**node, "Resources": {**node["Resources"], "GPU": 1.0}} for node in ray.nodes()]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with cluster("auto", 2, device) as found:
        found.begin([sys.executable, "-c", ""], tmp_path / "log.txt")
    assert ray.options[0]["num_gpus"] == gpus


# With Ray itself


def killed_in_training(arguments: list[str], seconds: float, out: Path, trial_too: bool) -> bool:
    """Whether it was, so long after trials ran; not if it had ended by itself."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while trial_of(out) is None and process.poll() is None:
        time.sleep(0.05)
    try:
        _, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        if trial_too and (running := trial_of(out)) is not None:
            subprocess.run(["kill", "-9", str(running)], check=False, stderr=subprocess.DEVNULL)
        process.communicate()
        return True
    assert process.returncode == 0, error.decode()
    return False


@pytest.mark.slow
def test_killed_ten_times_with_two_workers_it_ends_with_the_table_of_one_after_another(tmp_path):
    pytest.importorskip("ray")
    rng, (model, data) = random.Random(0), place(tmp_path)
    sets = [part for name, value in SETS.items() for part in ("--set", f"{name}={value}")]
    begun = command(model, data, "--methods", "lora", "--seeds", "2", *sets)
    with_ray = ["--ray", "local", "--parallel", "2"]
    straight, out = tmp_path / "straight", tmp_path / "killed"
    started = time.monotonic()
    subprocess.run([*begun, "--out", str(straight)], check=True, stdout=subprocess.DEVNULL)
    whole, kills, arguments = time.monotonic() - started, 0, [*begun, "--out", str(out), *with_ray]
    while kills < KILLS and killed_in_training(arguments, rng.uniform(0.0, 0.07) * whole, out, kills % 2 == 0):
        kills += 1
        if (out / "plan.json").is_file():
            arguments = command("--resume", str(out), *with_ray)
        else:
            shutil.rmtree(out, ignore_errors=True)
    assert kills == KILLS
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert table(out) == table(straight)
