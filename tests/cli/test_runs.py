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


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "metrics": lambda text: changed(text, metrics=[1]),
    "method": lambda text: changed(text, method="lora"),
    "side": lambda text: changed(text, metrics={"after": "x"}),
    "schema": lambda text: changed(text, schema=0),
    "status": lambda text: changed(text, status=5),
}
NO_FIGURES = {"text": "abc", "nan": float("nan"), "null": None, "list": [3]}


def changed(text: str, **values) -> str:
    return json.dumps(json.loads(text) | values)


def test_one_damaged_run_hides_no_other(tmp_path, monkeypatch, capsys):
    names = ["fine", "a[red]b", "a-name-" + "very-" * 20 + "long", *DAMAGES, *NO_FIGURES]
    for name in names:
        (make_full_run(tmp_path / name) / "run.yaml").touch()
        result = tmp_path / name / "result.json"
        if name in DAMAGES:
            result.write_text(DAMAGES[name](result.read_text()))
        elif name in NO_FIGURES:
            result.write_text(changed(result.read_text(), seconds=NO_FIGURES[name]))
    code, told = listed(monkeypatch, capsys, str(tmp_path))
    assert code == 0
    told_of = {name: next(line for line in told.out.splitlines() if line.startswith(f"{name}  ")) for name in names}
    assert {name for name, line in told_of.items() if "unreadable" in line} == set(DAMAGES)
    assert {name for name, line in told_of.items() if line.endswith(" -") and name not in DAMAGES} >= set(NO_FIGURES)
    code, told = listed(monkeypatch, capsys, str(tmp_path), "--json")
    assert {json.loads(line)["run"] for line in told.out.splitlines()} == set(names)


def test_a_folder_without_runs_is_said(tmp_path, monkeypatch, capsys):
    for path, message in ((tmp_path, "holds no run"), (tmp_path / "none", "there is no folder")):
        code, told = listed(monkeypatch, capsys, str(path))
        assert code == 1
        assert message in told.err.replace("\n", " ")
