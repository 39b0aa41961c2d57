"""Rows that a run was trained on are told where it is measured on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import microplane
from microplane.cli.app import app
from microplane.data.progress import Silent
from microplane.runs import trained_rows
from tests import labels
from tests.labels import encoder_folder
from tests.tiny import SHALLOW, save_tiny_folder

SETS = {"train.steps": 2, "train.threads": 1, "eval.rows": 0, "model.dtype": "float32", "train.patience": 0}
ROWS = [{"prompt": f"{'xyz'[n % 3]} {n}", "completion": f"a{n}"} for n in range(40)]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a run, and rows that were trained and held out."""
    folder = tmp_path_factory.mktemp("trained")
    model = save_tiny_folder(folder / "model", **SHALLOW)
    data = write(folder / "rows.jsonl", ROWS)
    microplane.train(str(model), str(data), set=SETS | {"runs": str(folder / "runs"), "name": "one"})
    return folder


def measured(run: Path, data: Path, **sets) -> int | None:
    return microplane.evaluate(run, data, set={"eval.rows": 0} | sets).get("trained_rows")


def others(count: int) -> list[dict]:
    return [{"prompt": f"w {n}", "completion": f"b{n}"} for n in range(count)]


def held_out(run: Path) -> int:
    return json.loads((run / "result.json").read_text())["data"]["validation_rows"]


def test_rows_are_known_by_their_content_whatever_file_they_stand_in(place, tmp_path):
    run = place / "runs" / "one"
    all_rows = measured(run, place / "rows.jsonl")
    assert all_rows == len(ROWS) - held_out(run) > 0
    again = [
        {"response": row["completion"], "question": row["prompt"], "id": n} for n, row in enumerate(others(5) + ROWS)
    ]
    assert measured(run, write(tmp_path / "again.jsonl", again)) == all_rows
    assert measured(run / "adapter", write(tmp_path / "adapter.jsonl", again)) == all_rows
    changed = [row | {"response": "c"} for row in again]
    assert measured(run, write(tmp_path / "changed.jsonl", changed)) == 0
    assert measured(place / "model", place / "rows.jsonl") is None


def test_the_terminal_and_the_json_tell_how_many(place, tmp_path):
    run, runner = str(place / "runs" / "one"), CliRunner()
    options = ["--set", "eval.rows=0"]
    known = measured(Path(run), place / "rows.jsonl")
    mixed = str(write(tmp_path / "mixed.jsonl", [*others(3), *ROWS]))
    told = runner.invoke(app, ["eval", run, mixed, *options])
    said = " ".join(told.stderr.split())
    assert f"{known} of 43 rows are rows that this run was trained on, as rows.jsonl:" in said
    assert json.loads(runner.invoke(app, ["eval", run, mixed, "--json", *options]).stdout)["trained_rows"] == known
    new = str(write(tmp_path / "new.jsonl", others(3)))
    told = runner.invoke(app, ["eval", run, new, "--json", *options])
    assert json.loads(told.stdout)["trained_rows"] == 0
    assert "trained on" not in told.stderr


def test_rows_of_another_split_of_the_same_file_are_not_taken_for_trained_ones(place, tmp_path):
    names = ["train", "train", "dev", "test"]
    rows = [row | {"split": names[n % 4]} for n, row in enumerate(ROWS)]
    rows.append(ROWS[0] | {"split": "test"})  # in both
    data = write(tmp_path / "all.jsonl", rows)
    run = microplane.train(str(place / "model"), str(data), set=SETS | {"runs": str(tmp_path)})
    assert measured(run.folder, data) == 1


def test_a_training_file_that_is_gone_or_too_large_tells_what_it_can(place, tmp_path, monkeypatch):
    data = write(tmp_path / "rows.jsonl", ROWS)
    run = microplane.train(str(place / "model"), str(data), set=SETS | {"runs": str(tmp_path)}).folder
    copy = write(tmp_path / "copy.jsonl", ROWS)
    assert measured(run, copy) == len(ROWS) - held_out(run)
    monkeypatch.setattr(trained_rows, "MOST_BYTES", 100)
    told = []
    watch = Silent()
    monkeypatch.setattr(watch, "say", told.append, raising=False)
    microplane.evaluate(run, data, set={"eval.rows": 0}, watch=watch)
    assert any(f"{data} is what this run was trained on" in line for line in told)
    assert measured(run, copy) is None
    monkeypatch.undo()
    data.unlink()
    assert measured(run, copy) is None


def test_rows_with_labels_are_known_by_text_and_label(tmp_path):
    rows = labels.reviews()
    data = write(tmp_path / "rows.jsonl", rows)
    sets = SETS | {"runs": str(tmp_path)}
    run = microplane.train(str(encoder_folder(tmp_path / "model", "bert")), str(data), set=sets).folder
    assert len({row["text"] for row in rows}) == len(rows)
    assert measured(run, write(tmp_path / "copy.jsonl", rows)) == len(rows) - held_out(run)
    turned = [row | {"label": rows[n - 1]["label"]} for n, row in enumerate(rows)]
    assert measured(run, write(tmp_path / "turned.jsonl", turned)) < len(rows) - held_out(run)
    assert measured(run, write(tmp_path / "other.jsonl", [row | {"text": "!" + row["text"]} for row in rows])) == 0


def parts() -> tuple[list[dict], list[dict]]:
    """Rows of two runs, some of both."""
    return ROWS[:25], ROWS[20:]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_rows_of_the_run_that_it_began_from_count_too(place, tmp_path, method):
    first, second = (write(tmp_path / f"{name}.jsonl", rows) for name, rows in zip("ab", parts(), strict=True))
    sets = SETS | {"runs": str(tmp_path / "runs"), "data.validation": str(write(tmp_path / "v.jsonl", others(4)))}
    one = microplane.train(place / "model", first, set=sets | {"name": "one", "method.name": method})
    two = microplane.train(None, second, set=sets | {"name": "two", "model.adapter": str(one.folder)})
    everything = write(tmp_path / "everything.jsonl", [*others(3), *ROWS])
    assert measured(two.folder, everything) == len(ROWS), "each once, also those of both"
    assert measured(one.folder, everything) == len(parts()[0])
    told, watch = [], Silent()
    watch.say = told.append
    microplane.evaluate(two.folder, everything, set={"eval.rows": 0}, watch=watch)
    assert any("40 of 43 rows are rows that this run, or one that it began from, was trained on" in t for t in told)
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert measured(tmp_path / "moved" / "two", everything) == len(ROWS), "they moved together"
    first.unlink()
    told.clear()
    microplane.evaluate(tmp_path / "moved" / "two", everything, set={"eval.rows": 0}, watch=watch)
    assert any("at least 20 of 43 rows are rows that this run, or one that it began from" in line for line in told)
    assert measured(tmp_path / "moved" / "two", everything) is None, "how many there are is not known"
