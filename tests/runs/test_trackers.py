"""Trackers are told the knobs, every step, the scores and the files; one that fails leaves the run alone."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import microplane
from microplane.data.progress import Silent
from microplane.errors import ConfigError
from microplane.runs import trackers
from microplane.runs.train import resume
from tests.labels import write
from tests.tiny import SHALLOW, save_tiny_folder
from tests.training.test_verdicts import sayings

SETS = {"train.threads": 1, "train.steps": 4, "train.batch_size": 8, "data.max_unknown": 1.0, "eval.rows": 4}


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class StandIn:
    """Keeps what it is told."""

    made: ClassVar[list[StandIn]] = []

    def __init__(self, run: trackers.Begun):
        self.run, self.known, self.where = run, run.known or f"id of {run.name}", "here"
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended: Any = None
        StandIn.made.append(self)

    def log(self, figures, step):
        self.logged.append((step, dict(figures)))

    def end(self, figures, step, files, well):
        self.ended = SimpleNamespace(figures=dict(figures), step=step, files=dict(files), well=well)


class Breaks(StandIn):
    def log(self, figures, step):
        if step == 3:
            raise OSError("no network\nfor the moment")
        super().log(figures, step)


@pytest.fixture
def stand_in(monkeypatch):
    """In place of wandb."""
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setitem(trackers.TRACKERS, "wandb", (StandIn, ()))
    return StandIn.made


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    save_tiny_folder(folder / "model", **SHALLOW)
    write(folder / "rows.jsonl", sayings(60, 0))
    return folder


def train(place: Path, runs: Path, track: Any = ("wandb",), watch: Any = None, **sets: Any) -> microplane.Run:
    changes = SETS | {"runs": str(runs), "name": "run", "track": list(track)} | sets
    return microplane.train(place / "model", place / "rows.jsonl", set=changes, watch=watch)


def test_it_is_told_all_of_a_run(place, tmp_path, stand_in):
    watch = Told()
    run = train(place, tmp_path, watch=watch)
    [tracker] = stand_in
    assert tracker.run.knobs["method.rank"] == 16
    assert tracker.run.knobs["train.lr"] == run.result["run"]["train"]["lr"]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert {step: told["train/loss"] for step, told in tracker.logged if "train/loss" in told} == losses
    validations = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert {step: told["validation/loss"] for step, told in tracker.logged if "validation/loss" in told} == validations
    assert all(told["train/tokens_per_second"] > 0 for _, told in tracker.logged if "train/loss" in told)
    for when in ("before", "after"):
        scores = run.metrics[when]
        assert {name: tracker.ended.figures[f"{when}/{name}"] for name in scores} == scores
    for name in ("seconds", "peak_memory_bytes", "best_step", "validation_loss"):
        assert tracker.ended.figures[f"run/{name}"] == run.result["train"][name]
    assert tracker.ended.files == {"report": run.folder / "report.html", "adapter": run.folder / "adapter"}
    assert tracker.ended.well
    assert "track     wandb: here" in watch.lines


def test_one_that_fails_is_left_behind_and_the_run_goes_on(place, tmp_path, stand_in, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", (Breaks, ()))
    watch = Told()
    run = train(place, tmp_path, ("wandb", "mlflow"), watch)
    assert run.result["status"] == "success"
    well, broken = stand_in
    assert well.ended.step == 4
    assert broken.ended is None
    assert max(step for step, _ in broken.logged) == 2
    said = [line for line in watch.lines if line.startswith("warning   mlflow")]
    assert said == ["warning   mlflow is told nothing more of this run: OSError: no network"]


def test_a_resumed_run_goes_on_under_the_name_that_it_had(place, tmp_path, stand_in):
    run = train(place, tmp_path)
    resume(run.folder, set={"train.steps": 6})
    first, second = stand_in
    assert first.run.known is None
    assert second.run.known == "id of run"
    assert [step for step, told in second.logged if "train/loss" in told] == [5, 6]
    assert second.ended.step == 6


def test_a_run_that_fails_is_told_as_such(place, tmp_path, stand_in, monkeypatch):
    def fails(*given: Any, **named: Any) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr("microplane.runs.train.reopen", fails)
    with pytest.raises(RuntimeError, match="no more"):
        train(place, tmp_path)
    assert not stand_in[0].ended.well


def test_one_that_is_not_installed_is_told_before_the_work(place, tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", (StandIn, ("not_there",)))
    with pytest.raises(ConfigError, match="track = wandb: without not_there there is nobody to tell. pip install"):
        train(place, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_nothing_is_tracked_unasked(place, tmp_path, stand_in):
    train(place, tmp_path, ())
    assert stand_in == []
    assert not (tmp_path / "run" / trackers.NAMES).exists()


def written(run: microplane.Run) -> dict[str, dict[int, float]]:
    """What the run's own file has of each figure of a step, under the names of trackers."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    found = {name: {line["step"]: line[of] for line in lines if of in line} for name, of in NAMED.items()}
    assert all(found.values())
    return found


NAMED = {
    "train/loss": "loss",
    "train/lr": "lr",
    "train/grad_norm": "grad_norm",
    "validation/loss": "validation_loss",
}


def scores(run: microplane.Run) -> dict[str, float]:
    return {f"{when}/{name}": value for when in ("before", "after") for name, value in run.metrics[when].items()}


def same(told: dict[str, dict[int, float]], run: microplane.Run) -> None:
    """To float32, in which some trackers keep numbers."""
    for name, values in written(run).items():
        assert told[name] == pytest.approx(values, rel=1e-6), name


def test_tensorboard(place, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(place, tmp_path, ("tensorboard",))
    run = resume(run.folder, set={"train.steps": 6})
    found = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    same({name: {event.step: event.value for event in found.Scalars(name)} for name in NAMED}, run)
    for name, value in scores(run).items():
        assert found.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6)


def test_mlflow(place, tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = train(place, tmp_path, ("mlflow",))
    run = resume(run.folder, set={"train.steps": 6})
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [told] = client.search_runs([client.get_experiment_by_name("microplane").experiment_id])
    assert told.info.status == "FINISHED"
    assert told.data.params["method.name"] == "lora"
    history = {name: client.get_metric_history(told.info.run_id, name) for name in NAMED}
    assert sorted(metric.step for metric in history["train/loss"]) == [*range(1, 7)]
    same({name: {metric.step: metric.value for metric in all_} for name, all_ in history.items()}, run)
    assert {name: told.data.metrics[name] for name in scores(run)} == pytest.approx(scores(run))
    assert {file.path for file in client.list_artifacts(told.info.run_id)} == {"adapter", "report.html"}
    adapter = Path(client.download_artifacts(told.info.run_id, "adapter", str(tmp_path)))
    for file in (run.folder / "adapter").iterdir():
        assert (adapter / file.name).read_bytes() == file.read_bytes()


def offline_records(file: Path) -> Iterator[Any]:
    """Those of a .wandb file: records of LevelDB's log, in blocks of 32 KiB, behind 7 bytes of wandb's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, kept = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        kept += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(kept)
            kept = b""


def ended_records(file: Path) -> list[Any]:
    """All of a run that has ended, once another process of wandb's has written them."""
    for _ in range(300):
        found = list(offline_records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError("the run's end is not in the file")


def test_wandb(place, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    watch = Told()
    run = train(place, tmp_path, ("wandb",), watch)
    [offline] = (run.folder / "wandb").glob("offline-run-*")
    assert any("wandb: offline; wandb sync" in line for line in watch.lines)
    assert not [line for line in watch.lines if line.startswith("warning   wandb")]
    told: dict[str, dict[int, float]] = {name: {} for name in NAMED}
    summary = {}
    [file] = offline.glob("*.wandb")
    for record in ended_records(file):
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name in NAMED.keys() & row.keys():
            told[name][row["step"]] = row[name]
        summary |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update}
    same(told, run)
    assert {name: summary[name] for name in scores(run)} == pytest.approx(scores(run))


def test_trackio(place, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    watch = Told()
    run = train(place, tmp_path, ("trackio",), watch)
    assert not [line for line in watch.lines if line.startswith("warning   trackio")]
    [told] = trackio.Api().runs("microplane")
    assert told.name == "run"
    assert told.config["method.name"] == "lora"
    logs = SQLiteStorage.get_logs("microplane", "run", run_id=told.id)
    same({name: {log["step"]: log[name] for log in logs if name in log} for name in NAMED}, run)
    ended = {name: value for log in logs for name, value in log.items()}
    assert {name: ended[name] for name in scores(run)} == pytest.approx(scores(run))


def test_a_run_of_another_folder_is_another_in_trackio_too(tmp_path, monkeypatch):
    begun = []

    class Library:
        Api = staticmethod(lambda: Library)

        @staticmethod
        def runs(project):
            if not begun:
                raise ValueError(f"Project '{project}' does not exist")
            return [SimpleNamespace(name=name) for name in begun]

        @staticmethod
        def init(project, name, **how):
            begun.append(name)

    monkeypatch.setattr(trackers, "import_module", lambda name: Library)
    for folder, known in (("a", None), ("b", None), ("c", None), ("a", "home")):
        trackers.Trackio(trackers.Begun(tmp_path / folder / "home", {}, 0, known))
    assert begun == ["home", "home-2", "home-3", "home"]
