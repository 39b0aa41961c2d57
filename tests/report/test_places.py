"""Pages that people share tell no path of the machine, and none of its user's name, but for those that were typed."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from microplane.report.page import render
from microplane.report.places import home_name, quoted, renamed, shown_path
from microplane.report.read import read_run
from tests.report.runs import make_full_run


@pytest.fixture
def home(tmp_path, monkeypatch):
    found = tmp_path / "two words"
    (found / "projects" / "runs" / "mine").mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: found)
    return found


def test_a_path_is_shown_as_one_would_type_it(home, tmp_path, monkeypatch):
    run = home / "projects" / "runs" / "mine"
    monkeypatch.chdir(home / "projects")
    assert shown_path(run) == shown_path(Path("runs/mine")) == "runs/mine"
    monkeypatch.chdir(tmp_path)
    assert shown_path(run) == "two words/projects/runs/mine"
    monkeypatch.chdir("/")
    monkeypatch.setattr(Path, "cwd", lambda: Path("/elsewhere"))
    assert shown_path(run) == "~/projects/runs/mine"
    assert shown_path(tmp_path / "annual") == str(tmp_path / "annual")


def test_a_shown_path_is_a_word_of_a_command(home):
    assert quoted("~/my runs/a") == "~/'my runs/a'"
    assert shlex.split(quoted("~/my runs/a")) == ["~/my runs/a"]
    assert quoted("my runs/a") == "'my runs/a'"
    assert quoted("~odd/a") == "'~odd/a'"
    assert quoted("~") == "'~'"


def test_without_a_home_nothing_is_renamed(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path(os.sep))
    assert renamed({"a": ["/etc/x", 1, None]}, home_name()) == {"a": ["/etc/x", 1, None]}


def test_names_reach_into_lists_and_mappings_and_whole_folders():
    names = {"/data/runs": "", "/data/runs/other": "o", "/home/ann": "~"}
    value = {"a": ["/data/runs/x.jsonl", {"b": "see /home/ann/y, /data/runs and /data/runs2"}], "n": 3}
    assert renamed(value, names, "runs") == {"a": ["x.jsonl", {"b": "see ~/y, runs and /data/runs2"}], "n": 3}
    assert renamed("/data/runs/other/z", names) == "o/z"


def test_a_report_tells_no_path_of_its_user(home, monkeypatch):
    folder = home / "projects" / "runs" / "mine"
    make_full_run(folder)
    result = json.loads((folder / "result.json").read_text())
    result["model"]["path"] = f"{home}/.cache/base"
    result["error"] = f"{folder}/adapter: no room"
    result["samples"][0]["prompt"] = f"what lies in {home}/letters?"
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "run.yaml").write_text(f"data:\n  train: {folder}/rows.jsonl\n")
    monkeypatch.setattr(Path, "cwd", lambda: Path("/elsewhere"))
    record = read_run(folder)
    page = render(record)
    assert "~/.cache/base" in page
    assert "train: rows.jsonl" in page
    assert "~/projects/runs/mine" in page
    told = [line for line in page.splitlines() if str(home) in line]
    assert len(told) > 0
    assert all("letters" in line for line in told)  # people's own texts are as they are
    without = replace(record, result=record.result | {"samples": []})
    assert str(home) not in render(without)
