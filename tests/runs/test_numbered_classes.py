"""Classes under other names: a head that learned numbers, or another's classes, says none for another in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import microplane
from microplane.data.progress import Silent
from microplane.errors import AdapterError, CheckpointError, DataError
from microplane.runs.asked import CLASS_NAMES
from microplane.runs.prepare import Prepared
from microplane.training.resume import CLASSES
from tests.labels import encoder_folder
from tests.tiny import SHALLOW, save_tiny_folder

SETS = {"train.steps": 2, "train.threads": 1, "eval.rows": 0, "model.dtype": "float32", "train.patience": 0}
NUMBERS = [number % 3 for number in range(30)]
TEXTS = [f"{('low', 'mid', 'high')[number]} tide {at}" for at, number in enumerate(NUMBERS)]


def parquet(path: Path, names: list[str] | None, **columns) -> Path:
    table = pa.table(columns or {"text": TEXTS, "label": NUMBERS})
    features = {"label": {"names": names, "_type": "ClassLabel"}} if names else {}
    known = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(known), path)
    return path


def earlier(run: microplane.Run) -> Path:
    """Its adapter, as versions wrote it that read the numbers."""
    file = run.folder / "adapter" / "method.json"
    values = json.loads(file.read_text())
    assert values["about"].pop(CLASS_NAMES)
    file.write_text(json.dumps(values))
    return run.folder


@pytest.fixture
def run(tmp_path) -> microplane.Run:
    """Trained on bare numbers."""
    model, data = encoder_folder(tmp_path / "model", "bert"), parquet(tmp_path / "rows.parquet", None)
    return microplane.train(model, data, set=SETS | {"runs": str(tmp_path / "runs"), "name": "one"})


@pytest.mark.parametrize("names", [["1", "2", "3"], ["2", "1", "0"], ["low", "mid", "high"]])
def test_a_head_for_numbers_is_not_measured_by_names(run, tmp_path, names):
    with pytest.raises(DataError, match=rf"'label' \({', '.join(names)}\), and this run, of an earlier .* for 0, 1, 2"):
        microplane.evaluate(earlier(run), parquet(tmp_path / "test.parquet", names))


def test_names_that_are_the_numbers_and_files_without_any_are_measured(run, tmp_path):
    folder = earlier(run)
    plain = microplane.evaluate(folder, parquet(tmp_path / "plain.parquet", None))["scores"]
    assert microplane.evaluate(folder, parquet(tmp_path / "same.parquet", ["0", "1", "2"]))["scores"] == plain


def test_a_run_that_read_names_is_measured_by_them(tmp_path):
    model, data = encoder_folder(tmp_path / "model", "bert"), parquet(tmp_path / "rows.parquet", ["3", "1", "2"])
    run = microplane.train(model, data, set=SETS | {"runs": str(tmp_path / "runs")})
    assert microplane.load(run.folder).model.task_head.config.labels == ("1", "2", "3")
    assert microplane.evaluate(run.folder, data)["scores"]


def test_a_run_that_writes_is_told_that_answers_are_names_now(tmp_path):
    model = save_tiny_folder(tmp_path / "model", **SHALLOW)
    rows = [{"prompt": text, "completion": str(number)} for text, number in zip(TEXTS, NUMBERS, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = microplane.train(model, tmp_path / "rows.jsonl", set=SETS | {"runs": str(tmp_path / "runs")})
    data, watch = parquet(tmp_path / "test.parquet", ["low", "mid", "high"]), Silent()
    for made, count in ((lambda run: run.folder, 0), (earlier, 1)):
        told = []
        watch.say = told.append
        microplane.evaluate(made(run), data, watch=watch, set={"data.task": "answers"})
        assert sum("these names are its answers" in line for line in told) == count


def test_a_run_does_not_go_on_under_other_names(run, tmp_path, monkeypatch):
    """Its rows have the same numbers, so that nothing else would tell."""
    whole = Prepared.identity
    with monkeypatch.context() as patch:
        patch.setattr(Prepared, "identity", lambda self: {k: v for k, v in whole(self).items() if k != CLASSES})
        data = {"runs": str(tmp_path / "runs"), "name": "two"}
        old = microplane.train(tmp_path / "model", tmp_path / "rows.parquet", set=SETS | data)
    parquet(tmp_path / "rows.parquet", ["high", "low", "mid"])
    for known in ("its adapter", "its checkpoint"):
        with pytest.raises(CheckpointError, match=r"classes: \['0', '1', '2'\] then, \['high', 'low', 'mid'\] now"):
            microplane.resume(old.folder if known == "its adapter" else run.folder, set={"train.steps": 4})
    parquet(tmp_path / "rows.parquet", None)
    assert microplane.resume(old.folder, set={"train.steps": 3}).result["train"]["steps"] == 3


@pytest.mark.parametrize("names", [["a", "b", "c"], ["0", "1", "3"]])
def test_a_run_does_not_begin_from_a_head_for_other_classes(run, tmp_path, names):
    new = parquet(tmp_path / "new.parquet", names)
    with pytest.raises(AdapterError, match=rf"tells 0, 1, 2 apart, and these rows have {', '.join(names)}"):
        microplane.train(None, new, set=SETS | {"runs": str(tmp_path / "runs"), "model.adapter": str(run.folder)})
