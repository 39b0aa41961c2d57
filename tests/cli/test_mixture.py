"""`microplane mixture`, and training on a mixture, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import microplane
from microplane.cli.app import app
from tests.data.mixtures.kit import FLAN, REVIEWS, one, write_mixture, write_sources
from tests.tiny import save_tiny_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    write_sources(folder)
    write_mixture(folder, FLAN)
    return folder


def run(*arguments) -> str:
    shown = CliRunner().invoke(app, ["mixture", *map(str, arguments)])
    assert shown.exit_code == 0, shown.exception
    return shown.stdout


def test_shares_and_a_row_of_each_kind_are_shown(place):
    text = run(place / "mixture.yaml", "--rows", "3000")
    assert "3,000 rows are drawn, with seed 0" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["niv2"][1:7] == ["weight", "0.2,", "cap", "5,000", "60", "20.00%"]
    assert lines["reviews"][1:4] == ["sentiment", "300", "25.00%"]
    for kind in ("zero-shot", "zero-shot with options", "few-shot", "few-shot with options", "inverted"):
        assert f"\n{kind} (row " in text
    assert "few shot      rule 50.00%" in text


def test_json_holds_the_same_and_samples_are_rows_of_the_mixture(place):
    facts = json.loads(run(place / "mixture.yaml", "--json"))
    assert facts["rows"] == 10_000  # the default of a file
    assert sum(part["drawn"] for part in facts["submixtures"]) == 10_000
    assert sum(source["rule"] for source in facts["sources"]) == pytest.approx(1)
    assert all(abs(source["rule"] - source["sampled"]) < 0.02 for source in facts["sources"])
    few = json.loads(run(place / "mixture.yaml", "--rows", "500", "--json"))
    assert sum(source["sampled"] for source in few["sources"]) == pytest.approx(1)
    kinds = {sample["kind"]: sample for sample in facts["samples"]}
    assert len(kinds) == 5
    assert kinds["few-shot"]["inputs"].count("\n\n\n") == kinds["few-shot"]["shots"] > 0
    assert not kinds["zero-shot"]["options"]
    assert "/inverted/" in kinds["inverted"]["template"]


def test_rows_are_written_and_gone_on_with(place, tmp_path):
    out = tmp_path / "rows.jsonl"
    run(place / "mixture.yaml", "--rows", "20", "--out", out)
    first = out.read_text()
    run(place / "mixture.yaml", "--rows", "30", "--out", out)
    assert out.read_text().startswith(first)
    assert len(out.read_text().splitlines()) == 30


def test_notes_and_skipped_rows_are_shown(tmp_path):
    write_sources(tmp_path)
    with (tmp_path / "reviews.jsonl").open("a") as file:
        file.write('{"review": ""}\n')
    path = write_mixture(tmp_path, one(REVIEWS, skip_bad_rows=True, base="flan2022"), "skip.yaml")
    text = run(path)
    assert "warning: 1 bad rows of reviews are left out" in text
    assert "note: no sources in flan2021, t0, niv2, cot, dialog: the weight is shared among the others" in text


def test_families_and_the_knobs_of_a_file_are_listed():
    assert "reasoning: a question whose answer is reached step by step" in run("--families")
    knobs = CliRunner().invoke(app, ["knobs", "mixture"]).stdout
    assert "mixture.submixtures.NAME.few_shot = 0.5 (float): share of rows with exemplars" in knobs
    assert "mixture.submixtures.NAME.sources.N.family = (must be given) (str)" in knobs


def test_errors_are_one_message(place):
    path = write_mixture(place, one(REVIEWS | {"family": "mood"}), "wrong.yaml")
    for arguments, message in (
        ([path], "error: wrong.yaml, source reviews: there is no family of templates 'mood'"),
        ([], "error: no mixture given; expected a file, as in: microplane mixture mixture.yaml"),
    ):
        shown = subprocess.run(
            [sys.executable, "-m", "microplane.cli.app", "mixture", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (shown.returncode, shown.stdout) == (1, "")
        assert shown.stderr.startswith(message)


def test_a_model_is_trained_on_a_mixture(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    save_tiny_folder(tmp_path / "model")
    path = write_mixture(place, FLAN | {"rows": 40, "max_characters": 200}, "small.yaml")
    sets = {"runs": str(tmp_path / "runs"), "train.steps": 3, "train.threads": 1, "eval.rows": 2, "train.lr": 1e-2}
    sets |= {"eval.max_new_tokens": 2, "model.dtype": "float32", "data.max_length": 64}
    done = microplane.train(str(tmp_path / "model"), str(path), set=sets)
    assert done.result["status"] == "success"
    assert done.folder.name == "model-lora-small"
    assert done.result["data"]["rows"] == {"train": 40, "validation": 4}
