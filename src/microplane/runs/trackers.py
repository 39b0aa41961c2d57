"""A run told to the trackers that people look at: TensorBoard, Weights & Biases, MLflow, Trackio.

Off unless the knob `track` names one. Each is told the knobs once they are all decided, every step and validation, the
scores at the end, and where it keeps files the report and the adapter. A tracker that fails is left behind with a word;
the run goes on. Where a tracker keeps its things is what its own environment variables say.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from microplane.config.build import dotted, read_yaml
from microplane.data.progress import Calling, Watcher
from microplane.errors import ConfigError, first_line
from microplane.files import object_in, write_json

PROJECT = "microplane"  # of Weights & Biases, MLflow and Trackio, unless their environment names another
NAMES = "trackers.json"  # in a run's folder: how each tracker knows the run, so that a resumed one goes on there


@dataclass(frozen=True)
class Begun:
    """A run that begins, or goes on.

    Attributes:
        knobs: by dotted name.
        step: of its first record.
        known: how the tracker knows it, if it goes on.
    """

    folder: Path
    knobs: Mapping[str, Any]
    step: int
    known: str | None

    @property
    def name(self) -> str:
        return self.folder.name


class Tracker(Protocol):
    """One run in one tracker; making it begins it there."""

    known: str  # how the tracker finds the run again
    where: str  # it is to be seen

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def end(self, figures: Mapping[str, float], step: int, files: Mapping[str, Path], well: bool) -> None:
        """Args:
        figures: of the whole run.
        files: the report and the adapter's folder, as far as there are any.
        well: it ended as it should, or was stopped in good order.
        """


class TensorBoard:
    def __init__(self, run: Begun):
        library: Any = import_module("torch.utils.tensorboard")
        place = run.folder / "tensorboard"
        self.known, self.where = run.name, f"tensorboard --logdir {run.folder.parent}"
        self._writer = library.SummaryWriter(str(place), purge_step=run.step if run.known else None)
        self._writer.add_text("knobs", "\n".join(f"    {name}: {value}" for name, value in run.knobs.items()))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def end(self, figures: Mapping[str, float], step: int, files: Mapping[str, Path], well: bool) -> None:
        self.log(figures, step)
        for name, path in files.items():
            self._writer.add_text(name, f"`{path}`", step)
        self._writer.close()


class WeightsAndBiases:
    """Online where the user has logged in, unless WANDB_MODE says otherwise."""

    def __init__(self, run: Begun):
        library: Any = import_module("wandb")
        mode = os.environ.get("WANDB_MODE") or ("online" if library.login(prompt=False) else "offline")
        self._library = library
        self._run = library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.known,
            config=dict(run.knobs),
            dir=str(run.folder),
            mode=mode,
            resume="allow",
            settings=library.Settings(silent=True, console="off"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # a run that goes back to its best weights has steps again
        self.known = str(self._run.id)
        offline = f"offline; wandb sync {run.folder / 'wandb'}/offline-run-* sends it"
        self.where = self._run.url or (offline if mode == "offline" else mode)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log({**figures, "step": step})

    def end(self, figures: Mapping[str, float], step: int, files: Mapping[str, Path], well: bool) -> None:
        self._run.summary.update(dict(figures))
        if files:
            artifact = self._library.Artifact(f"{self._run.name}-{self.known}", type="run")
            for name, path in files.items():
                artifact.add_dir(str(path), name) if path.is_dir() else artifact.add_file(str(path), path.name)
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if well else 1)


class MLflow:
    """In MLFLOW_TRACKING_URI, else in a file beside the runs."""

    LONGEST = 6000  # characters of a parameter that it takes

    def __init__(self, run: Begun):
        library: Any = import_module("mlflow")
        runs = run.folder.parent.absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
        artifacts = None if "MLFLOW_TRACKING_URI" in os.environ else (runs / "mlartifacts").as_uri()
        self._client, self._entities = library.MlflowClient(uri), library.entities
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(title)
        experiment = found.experiment_id if found else self._client.create_experiment(title, artifacts)
        self.known = run.known or self._client.create_run(experiment, run_name=run.name).info.run_id
        self._client.update_run(self.known, "RUNNING")
        self.where = f"mlflow ui --backend-store-uri {uri}"
        params = [library.entities.Param(name, str(value)[: self.LONGEST]) for name, value in run.knobs.items()]
        if not run.known:  # it lets no parameter be given twice, and those of a run that goes on may be others
            for start in range(0, len(params), 100):
                self._client.log_batch(self.known, params=params[start : start + 100])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        metrics = [self._entities.Metric(name, value, 0, step) for name, value in figures.items()]
        self._client.log_batch(self.known, metrics=metrics)

    def end(self, figures: Mapping[str, float], step: int, files: Mapping[str, Path], well: bool) -> None:
        self.log(figures, step)
        for name, path in files.items():
            if path.is_dir():
                self._client.log_artifacts(self.known, str(path), name)
            else:
                self._client.log_artifact(self.known, str(path))
        self._client.set_terminated(self.known, "FINISHED" if well else "FAILED")


class Trackio:
    """It knows a run by its name alone, in one project for all folders of runs: a name that is taken gets a number."""

    def __init__(self, run: Begun):
        self._library: Any = import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.known = run.known or self._free_name(project, run.name)
        self._run = self._library.init(
            project, name=self.known, config=dict(run.knobs), resume="allow", embed=False, auto_log_gpu=False
        )
        self.where = f"trackio show --project {project}"

    def _free_name(self, project: str, name: str) -> str:
        taken = set[str]()
        with suppress(ValueError):  # there is no such project yet
            taken = {one.name for one in self._library.Api().runs(project)}
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        return next(one for one in itertools.chain([name], numbered) if one not in taken)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def end(self, figures: Mapping[str, float], step: int, files: Mapping[str, Path], well: bool) -> None:
        self.log(figures, step)
        self._run.finish()


TRACKERS: dict[str, tuple[Callable[[Begun], Tracker], tuple[str, ...]]] = {
    "tensorboard": (TensorBoard, ("tensorboard",)),
    "wandb": (WeightsAndBiases, ("wandb",)),
    "mlflow": (MLflow, ("mlflow", "sqlalchemy", "alembic")),
    "trackio": (Trackio, ("trackio",)),
}
"""By the knob's word: what tells it, and the packages that it needs."""


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises: ConfigError, for one whose packages are not installed."""
    if missing := [package for name in names for package in TRACKERS[name][1] if find_spec(package) is None]:
        raise ConfigError(
            f"track = {', '.join(names)}: without {', '.join(missing)} there is nobody to tell. pip install "
            "'microplane[track]' installs all four trackers; or leave track out"
        )


@contextmanager
def tracked(names: tuple[str, ...], folder: Path, watch: Watcher) -> Iterator[Watcher]:
    """A watcher that tells trackers what it is told; at the end, how the run ended."""
    if not names:
        yield watch
        return
    telling = Telling(names, folder, watch)
    try:
        yield Calling(watch, telling.record)
    finally:
        telling.end()


class Telling:
    """Hands the records of a run on to trackers, and says what becomes of these."""

    def __init__(self, names: tuple[str, ...], folder: Path, watch: Watcher):
        self._names, self._folder, self._watch = names, folder, watch
        self._open: dict[str, Tracker] | None = None  # from the first record on: then all knobs are decided
        self._step = 0

    def record(self, record: dict[str, Any]) -> None:
        self._step = int(record["step"])
        if self._open is None:
            self._begin()
        if figures := figures_of(record):
            self._each(lambda tracker: tracker.log(figures, self._step))

    def end(self) -> None:
        """Also of a run that failed."""
        if self._open is None:
            return
        result = object_in(self._folder / "result.json")
        there = {"report": self._folder / "report.html", "adapter": self._folder / "adapter"}
        files = {name: path for name, path in there.items() if path.exists()}
        well = result.get("status") in ("success", "stopped")
        scores = scores_of(result)
        self._each(lambda tracker: tracker.end(scores, self._step, files, well))

    def _begin(self) -> None:
        known = object_in(self._folder / NAMES)
        knobs, self._open = dotted(read_yaml(self._folder / "run.yaml")), {}
        for name in self._names:
            try:
                self._open[name] = TRACKERS[name][0](Begun(self._folder, knobs, self._step, known.get(name)))
            except Exception as error:
                self._leave(name, error)
            else:
                self._watch.say(f"track     {name}: {self._open[name].where}")
        write_json(self._folder / NAMES, known | {name: tracker.known for name, tracker in self._open.items()})

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list((self._open or {}).items()):
            try:
                tell(tracker)
            except Exception as error:
                self._leave(name, error)

    def _leave(self, name: str, error: Exception) -> None:
        if self._open is not None:
            self._open.pop(name, None)
        self._watch.say(
            f"warning   {name} is told nothing more of this run: {type(error).__name__}: {first_line(error)[:200]}"
        )


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Of a step or a validation, as trackers name them: `train/loss`, `validation/loss`."""
    if "validation_loss" in record:
        return {"validation/loss": float(record["validation_loss"])}
    if "loss" not in record:
        return {}
    numbers = {name: value for name, value in record.items() if type(value) in (int, float) and name != "step"}
    return {f"train/{name}": float(value) for name, value in numbers.items()}


def scores_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Of the whole run: `before/...` and `after/...` for each metric, and what training took."""
    metrics, train = result.get("metrics") or {}, result.get("train") or {}
    found = {
        f"{when}/{name}": float(value)
        for when in ("before", "after")
        for name, value in (metrics.get(when) or {}).items()
        if type(value) in (int, float)
    }
    names = ("seconds", "peak_memory_bytes", "best_step", "validation_loss")
    return found | {f"run/{name}": float(train[name]) for name in names if type(train.get(name)) in (int, float)}
