"""Trials on a Ray cluster: a task on one of its machines begins the trial's process there and waits for it.

Ray says where there is room, and nothing else: what is known of a trial is its folder, as without Ray, so all machines
have to see the comparison's folder under one path, and a comparison goes on with Ray or without it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microplane.comparison.processes import STOP, LostError, begun
from microplane.errors import ConfigError, first_line
from microplane.hardware import usable_cores

POLL = 0.2  # seconds between two looks of a task at its process, in which an interrupt reaches it
REACHED = 5.0  # seconds in which a cluster's address answers; Ray itself tries for three minutes
ANSWERS = 120.0  # seconds in which each machine tells what it sees
STORE = 100 * 2**20  # bytes of a local Ray's object store: no tensor passes through it
SAME = ("microplane", "torch")  # packages of which all machines have the same version
START = "Start one with: ray start --head; or have one of this machine's cores with --ray local"


@dataclass
class Process:
    """The process of a trial on some machine of the cluster."""

    ray: Any
    task: Any

    def wait(self, seconds: float) -> int | None:
        try:
            if not self.ray.wait([self.task], timeout=seconds)[0]:
                return None
            return int(self.ray.get(self.task))
        except self.ray.exceptions.TaskCancelledError:
            return -signal.SIGINT
        except self.ray.exceptions.RayError as error:
            raise LostError(first_line(error) or type(error).__name__) from None

    def interrupt(self) -> None:
        self.ray.cancel(self.task)


@dataclass
class Cluster:
    """The machines of a Ray cluster.

    Args:
        nodes: the living ones, as `ray.nodes()` has them.
    """

    ray: Any
    nodes: list[dict[str, Any]]
    at_once: int
    gpus: bool = False  # whether each trial gets one

    @property
    def threads(self) -> int:
        """As many as each of the trials can have where so many run at once."""
        cores = [int(node["Resources"]["CPU"]) for node in self.nodes]
        return next((n for n in range(max(cores), 1, -1) if sum(own // n for own in cores) >= self.at_once), 1)

    def begin(self, command: Sequence[str], log: Path) -> Process:
        settings = {name: value for name, value in os.environ.items() if name.startswith("MICROPLANE_")}
        task = self.ray.remote(trial).options(num_cpus=self.threads, num_gpus=int(self.gpus), max_retries=0)
        return Process(self.ray, task.remote(list(command), str(log.absolute()), settings))

    def check(self, seen: Sequence[Path]) -> None:
        """Whether each machine has this version and sees these files.

        Raises:
            ConfigError: with the first that does not.
        """
        pinned = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        own = about(seen)
        for node in self.nodes:
            name = node["NodeManagerAddress"]
            where = pinned(node["NodeID"], soft=False)
            asked = self.ray.remote(about).options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote(seen)
            try:
                there = self.ray.get(asked, timeout=ANSWERS)
            except self.ray.exceptions.RayError as error:
                raise ConfigError(
                    f"--ray: {name} cannot run trials; is microplane there? {first_line(error)}"
                ) from None
            for what, version in own.versions.items():
                if there.versions[what] != version:
                    raise ConfigError(
                        f"--ray: {name} has {what} {there.versions[what]}, and {version} is here: figures of different "
                        "versions cannot be compared"
                    )
            for path in seen:
                if own.files[str(path)] != there.files[str(path)]:
                    raise ConfigError(
                        f"--ray: {name} does not see {path} as it is here. All machines of the cluster must have the "
                        "model, the rows and the comparison's folder under the same path (a shared file system)"
                    )


@dataclass(frozen=True)
class About:
    """What a machine has."""

    versions: dict[str, str]
    files: dict[str, tuple[bool, bytes]]  # whether it is a folder, and what a file begins with; absent: no folder


def about(seen: Sequence[Path]) -> About:
    """Of the machine that this runs on."""
    files = {}
    for path in seen:
        content = b""
        with suppress(OSError), path.open("rb") as file:
            content = file.read(2**16)
        files[str(path)] = path.is_dir(), content
    return About({name: importlib.metadata.version(name) for name in SAME}, files)


def trial(command: list[str], log: str, settings: dict[str, str]) -> int:
    """In a worker of the cluster: the exit code of a trial's process. What cancels the task has it save and end."""
    process = begun([sys.executable, *command[1:]], Path(log), settings)
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL)
    except BaseException:
        with suppress(ProcessLookupError):
            process.send_signal(STOP)
        process.wait()
        raise


@contextmanager
def cluster(address: str, at_once: int | None, device: str) -> Iterator[Cluster]:
    """A connection to a cluster.

    Args:
        address: HOST:PORT, `auto` for one that runs on this machine, `local` for one that begins and ends with this.
        at_once: trials at once; one for each machine where it is None.
        device: `model.device`; where it is not `cpu`, and the cluster has GPUs, each trial gets one.

    Raises:
        ConfigError: where ray is not installed, or no cluster answers.
    """
    ray, mine = _ray(), False
    try:
        if not ray.is_initialized():
            mine = True
            _connect(ray, address, at_once)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not nodes:
            raise ConfigError(f"--ray {address}: no machine of this cluster has a core for a trial")
        gpus = device != "cpu" and any(node["Resources"].get("GPU") for node in nodes)
        yield Cluster(ray, nodes, at_once or len(nodes), gpus)
    finally:
        if mine:
            ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers; read when it is imported
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise ConfigError(
            "--ray needs the package ray, which is not installed. Install it: pip install 'microplane[ray]'"
        ) from None
    return ray


def _connect(ray: Any, address: str, at_once: int | None) -> None:
    how: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        cores = max(usable_cores(), at_once or 1)
        how |= {"include_dashboard": False, "object_store_memory": STORE, "num_cpus": cores}
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:
            socket.create_connection((host, int(port)), REACHED).close()
        ray.init(address=address, **how)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--ray {address}: no Ray cluster answers there ({first_line(error)}). {START}") from None
