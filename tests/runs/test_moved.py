"""A run whose base, rows or folder lie elsewhere by now: it goes on from there, and from nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import microplane
from microplane.errors import AdapterError, CheckpointError
from tests.tiny import save_tiny_folder

ROWS = [{"prompt": f"say {i}", "completion": str(i)} for i in range(24)]
SETS = {"train.epochs": 1, "eval.rows": 0, "train.threads": 1, "train.lr": 1e-2}


@pytest.fixture
def place(tmp_path):
    """A model, rows, and a finished run of them."""
    save_tiny_folder(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sets = SETS | {"runs": str(tmp_path / "runs"), "name": "first"}
    microplane.train(tmp_path / "model", tmp_path / "rows.jsonl", set=sets)
    return tmp_path


def other_weights(folder):
    save_tiny_folder(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_run_goes_on_with_a_base_that_moved(place):
    run, new = place / "runs" / "first", str(place / "elsewhere")
    shutil.move(place / "model", new)
    with pytest.raises(CheckpointError, match=rf"--resume {run} --set model.name=FOLDER"):
        microplane.resume(run, set={"train.epochs": 2})
    more = microplane.resume(run, set={"train.epochs": 2, "model.name": new})
    assert more.result["status"] == "success"
    assert more.result["run"]["model"]["name"] == new
    assert microplane.load(run).path == microplane.load(run, base=new).path  # the adapter names the new place


def test_no_other_weights_pass_for_a_base_that_moved(place):
    sets = {"train.epochs": 2, "model.name": str(other_weights(place / "other"))}
    with pytest.raises(CheckpointError, match="weights: "):
        microplane.resume(place / "runs" / "first", set=sets)


def test_a_run_goes_on_with_rows_that_moved_and_with_no_others(place):
    run, new = place / "runs" / "first", place / "moved.jsonl"
    shutil.move(place / "rows.jsonl", new)
    with pytest.raises(CheckpointError, match=r"data\.train: .*rows\.jsonl any more\. .* --set data\.train=FILE"):
        microplane.resume(run)
    assert microplane.resume(run, set={"train.epochs": 2, "data.train": str(new)}).result["status"] == "success"
    new.write_text(new.read_text().replace("say 3", "tell 3"))
    with pytest.raises(CheckpointError, match="train rows|validation rows"):
        microplane.resume(run, set={"train.epochs": 3})


def test_rows_in_the_folder_of_a_run_move_with_it(place):
    sets = SETS | {"runs": str(place / "runs"), "name": "inline"}
    run = microplane.train(place / "model", ROWS, set=sets).folder
    shutil.move(run, place / "archive")
    more = microplane.resume(place / "archive", set={"train.epochs": 2})
    assert more.result["run"]["data"]["train"] == str(place / "archive" / "rows.jsonl")


def test_a_run_starts_from_an_adapter_whose_base_moved(place):
    first, new = place / "runs" / "first", str(place / "elsewhere")
    shutil.move(place / "model", new)
    sets = SETS | {"runs": str(place / "runs"), "model.adapter": str(first)}
    with pytest.raises(AdapterError, match=r"--set model\.name=FOLDER"):
        microplane.train(data=place / "rows.jsonl", set=sets)
    second = microplane.train(new, place / "rows.jsonl", set=sets)
    assert second.result["model"]["name"] == new
    with pytest.raises(AdapterError, match="was trained on other files"):
        microplane.train(other_weights(place / "other"), place / "rows.jsonl", set=sets)


def test_a_run_whose_base_moved_is_measured(place):
    run, new = place / "runs" / "first", place / "elsewhere"
    before = microplane.evaluate(run, place / "rows.jsonl", set={"eval.rows": 0})["scores"]
    shutil.move(place / "model", new)
    with pytest.raises(AdapterError, match="--base"):
        microplane.evaluate(run, place / "rows.jsonl", set={"eval.rows": 0})
    assert microplane.evaluate(run, place / "rows.jsonl", set={"eval.rows": 0}, base=new)["scores"] == before
