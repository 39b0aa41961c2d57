"""`microplane runs`: a line for each run, also of those that failed, are going, or were killed."""

from __future__ import annotations

import json

import pytest

from microplane.cli import app as cli
from microplane.files import lock
from tests.report.runs import make_full_run


def listed(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["microplane", "runs", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr()


def test_runs_are_listed_with_what_is_known(tmp_path, monkeypatch, capsys):
    folder = make_full_run(tmp_path / "home")
    (folder / "run.yaml").touch()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "run.yaml").write_text("train: {}\n")
    (tmp_path / "no-run").mkdir()
    code, told = listed(monkeypatch, capsys, str(tmp_path), "--json")
    assert code == 0
    by_name = {line["run"]: line for line in map(json.loads, told.out.splitlines())}
    assert by_name.keys() == {"home", "killed"}
    result = json.loads((folder / "result.json").read_text())
    home = by_name["home"]
    assert (home["status"], home["method"], home["seconds"]) == ("success", "lora", result.get("seconds"))
    assert home["after"] == result["metrics"]["after"][home["metric"]]
    assert home["metric"] not in ("loss", "perplexity")
    assert by_name["killed"]["status"] == "unfinished"
    held = lock(tmp_path / "killed")
    assert held is not None
    code, told = listed(monkeypatch, capsys, str(tmp_path))
    held.release()
    line = next(line for line in told.out.splitlines() if line.startswith("killed"))
    assert line.split() == ["killed", "running", "-", "-", "-", "-", "-"]


def test_a_folder_without_runs_is_said(tmp_path, monkeypatch, capsys):
    for path, message in ((tmp_path, "holds no run"), (tmp_path / "none", "there is no folder")):
        code, told = listed(monkeypatch, capsys, str(path))
        assert code == 1
        assert message in told.err.replace("\n", " ")
