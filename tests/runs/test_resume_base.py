"""A run goes on with the base that it was begun on, known by what is read of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import microplane
from microplane.errors import CheckpointError
from microplane.models.files.load import load_model, save_model
from microplane.runs.prepare import Prepared
from tests.tiny import save_tiny_folder

SETS = {"train.steps": 2, "train.threads": 1, "eval.rows": 0, "model.dtype": "float32", "train.patience": 0}


def begin(tmp_path: Path) -> microplane.runs.train.Run:
    save_tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"say {letter}", "completion": letter * 2} for letter in "abcdefghijklmnop"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return microplane.train(tmp_path / "model", tmp_path / "rows.jsonl", set=SETS | {"runs": str(tmp_path / "runs")})


@pytest.fixture
def run(tmp_path):
    return begin(tmp_path)


def go_on(run: microplane.runs.train.Run) -> int:
    return microplane.resume(run.folder, set={"train.steps": 4}).result["train"]["steps"]


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_files_that_are_not_read_do_not_matter(run, tmp_path):
    (tmp_path / "model" / "notes.json").write_text("{}")
    assert go_on(run) == 4


def test_other_weights_are_refused(run, tmp_path):
    model = load_model(tmp_path / "model")
    with torch.no_grad():
        model.layers[1].mlp.up.weight[3, 5] += 1e-3
    save_model(model, tmp_path / "model")
    with pytest.raises(CheckpointError, match="weights: "):
        go_on(run)


def test_another_configuration_of_the_same_weights_is_refused(run, tmp_path):
    edit(tmp_path / "model" / "config.json", rms_norm_eps=1e-3)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        go_on(run)


@pytest.mark.parametrize("changed", [True, False])
def test_a_run_of_an_earlier_version_knows_its_base_by_the_files(tmp_path, monkeypatch, changed):
    with monkeypatch.context() as patch:
        patch.setattr(Prepared, "_base", lambda prepared: {})
        run = begin(tmp_path)
    if not changed:
        assert go_on(run) == 4
        return
    (tmp_path / "model" / "notes.json").write_text("{}")
    with pytest.raises(CheckpointError, match="model: "):
        go_on(run)
