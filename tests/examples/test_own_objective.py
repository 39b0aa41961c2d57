"""An objective, a format and a metric out of another package: chosen by their knobs, trained, measured and resumed."""

from __future__ import annotations

import json

import pytest

from tests.examples import packages
from tests.examples.packages import microplane

SETS = packages.SETS | {
    "data.objective": "focal",
    "data.format": "two-speakers",
    "eval.metrics": "[first_word]",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and rows, and the package."""
    rows = [{"lines": f"A: say {'abcdefg'[i % 7] * 2}\nB: {'abcdefg'[i % 7]}"} for i in range(42)]
    return packages.place_with("own_objective", tmp_path_factory.mktemp("own"), rows)


def options(**changes):
    chosen = SETS | {name.replace("__", "."): value for name, value in changes.items()}
    return [part for name, value in chosen.items() if value is not None for part in ("--set", f"{name}={value}")]


def train(place, *arguments, installed=True):
    return microplane(place, "train", "model", "rows.jsonl", *arguments, installed=installed)


def logged(place, run):
    lines = (place / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def test_it_trains_by_the_packages_loss_and_measures_by_its_metric(place):
    done = train(place, *options(), "--set", "name=focal")
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "runs" / "focal" / "result.json").read_text())
    assert result["status"] == "success"
    assert [check["passed"] for check in result["checks"]] == [True] * len(result["checks"])
    assert "first_word" in result["metrics"]["after"]
    plain = train(place, *options(data__objective=None), "--set", "name=plain")
    assert plain.returncode == 0, plain.stderr
    assert 0 < logged(place, "focal")[0] < logged(place, "plain")[0]  # (1 - p)^2 makes each token's loss smaller


def test_a_finished_run_is_evaluated_as_it_was_trained(place):
    assert train(place, *options(), "--set", "name=again").returncode == 0
    told = microplane(place, "eval", "runs/again", "rows.jsonl", "--set", "eval.metrics=[first_word]")
    assert told.returncode == 0, told.stderr
    assert "first_word" in told.stdout + told.stderr


def test_a_row_that_does_not_fit_is_told_of_with_its_place(place):
    (place / "bad.jsonl").write_text('{"lines": "B: first"}\n')
    told = microplane(place, "train", "model", "bad.jsonl", *options())
    assert told.returncode != 0
    assert "bad.jsonl:1" in told.stderr
    assert "line 1 is 'B', expected A" in " ".join(told.stderr.split())


@pytest.mark.parametrize(("knob", "name"), [("data.objective", "focal"), ("data.format", "two-speakers")])
def test_without_the_package_the_knob_lists_what_there_is(place, knob, name):
    told = train(place, "--set", f"{knob}={name}", installed=False)
    assert told.returncode != 0
    assert f"{knob} = {name!r}: must be 'auto', " in " ".join(told.stderr.split())


def test_the_knobs_list_what_the_package_adds(place):
    listed = microplane(place, "knobs").stdout
    assert "prefix_lm | focal)" in listed
    assert "text | two-speakers)" in listed
