"""A method out of another package, as pip installs it: listed, trained through the command line, resumed and merged."""

from __future__ import annotations

import json

import pytest

from tests.examples.packages import SETS, microplane, place_with


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and rows, and the package."""
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(7)] * 6
    return place_with("own_method", tmp_path_factory.mktemp("own"), rows)


def test_it_is_listed_with_its_package_its_facts_and_its_knobs(place):
    listed = microplane(place, "methods").stdout
    assert "lora-xs: an r x r matrix between the singular vectors" in listed
    assert "(from the package microplane-lora-xs)" in listed
    assert "method.rank = 32 (int): r: singular vectors kept" in listed
    assert "lora: low-rank updates" in listed
    assert "| lora-xs | 0.004 | yes | yes | no | any | - |" in microplane(place, "methods", "--table").stdout


def test_it_trains_with_all_checks_passed_resumes_and_merges(place):
    sets = [part for name, value in SETS.items() for part in ("--set", f"{name}={value}")]
    job = ["train", "model", "rows.jsonl", "--method", "lora-xs", "--set", "name=xs", *sets]
    done = microplane(place, *job)
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "runs" / "xs" / "result.json").read_text())
    assert result["status"] == "success"
    assert result["method"]["name"] == "lora-xs"
    assert [check["passed"] for check in result["checks"]] == [True] * len(result["checks"])
    assert len(result["checks"]) >= 3
    longer = microplane(place, "train", "--resume", "runs/xs")
    assert longer.returncode == 0, longer.stderr
    merged = microplane(place, "merge", "runs/xs", "merged")
    assert merged.returncode == 0, merged.stderr
    assert (place / "merged" / "model.safetensors").is_file()


def test_a_wrong_knob_is_told_of_as_for_any_method(place):
    told = microplane(place, "train", "model", "rows.jsonl", "--method", "lora-xs", "--set", "method.rang=3")
    assert told.returncode != 0
    assert "method.rang: there is no such knob. Did you mean 'method.rank'?" in " ".join(told.stderr.split())


def test_without_the_package_its_adapter_says_that_the_method_is_unknown(place):
    told = microplane(place, "train", "model", "rows.jsonl", "--method", "lora-xs", installed=False)
    assert told.returncode != 0
    assert "method.name = 'lora-xs': there is no such method" in " ".join(told.stderr.split())
