"""Runs side by side: what differs, what can be compared, and a page whose figures are those of the runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import microplane
from microplane.cli.app import app
from microplane.comparison.side_by_side import side_by_side, write_side_by_side
from microplane.errors import ConfigError
from microplane.report.read import ReportError
from tests.comparison.kit import SETS, rows, write
from tests.report.browser import BROWSER, at, state
from tests.tiny import SHALLOW, save_tiny_folder

RUNS = {
    "low": {"method.name": "lora", "train.lr": 1e-4},
    "high": {"method.name": "lora", "train.lr": 3e-2},
    "ia3": {"method.name": "ia3", "train.lr": 3e-2},
}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Three runs on the same rows, and one on others."""
    folder = tmp_path_factory.mktemp("beside")
    save_tiny_folder(folder / "model", **SHALLOW)
    data = write(folder, "rows.jsonl", rows(60))
    others = write(folder, "others.jsonl", rows(90)[60:])
    common = {**SETS, "runs": str(folder / "runs"), "train.steps": 6, "train.eval_every": 2}
    for name, sets in RUNS.items():
        microplane.train(folder / "model", data, set={**common, **sets, "name": name, "eval.general": "default"})
    microplane.train(folder / "model", others, set={**common, "name": "other", "train.epochs": 1})
    return folder / "runs"


def runs(there, *names):
    return [there / name for name in names]


def test_the_figures_are_those_of_the_runs(there):
    found = side_by_side(runs(there, "low", "high", "ia3"))
    assert found["not_comparable"] == {}
    for row in found["runs"]:
        own = json.loads((there / row["run"] / "result.json").read_text())
        assert row["score"]["value"] == pytest.approx(own["metrics"]["after"][found["metric"]["name"]])
        assert row["score"]["low"] < row["score"]["high"]
        assert row["seconds"] == own["train"]["seconds"]
        assert row["peak_memory_bytes"] == own["train"]["peak_memory_bytes"]
        assert row["trainable_parameters"] == own["method"]["trainable_parameters"]
        assert row["forgetting"]["difference"] == own["general"]["difference"]
        counted = list(map(json.loads, (there / row["run"] / "metrics.jsonl").open()))
        trained = sum(line.get("trained_tokens", 0) for line in counted)
        assert found["curves"][row["run"]][-1][0] == trained
        assert found["curves"][row["run"]][0][0] < trained
    first = found["runs"][0]
    assert (found["reference"], first["to_reference"]) == ("low", None)
    gap = found["runs"][1]["to_reference"]
    assert gap["value"] == pytest.approx(found["runs"][1]["score"]["value"] - first["score"]["value"])
    assert any("One seed" in line or "one seed" in line for line in found["answer"]["sentences"])
    assert {row["name"] for row in found["baselines"]} >= {"untouched model"}
    assert len(found["rows"]) == found["metric"]["rows"]
    assert found["rows"][0]["answers"].keys() == {"low", "high", "ia3"}


def test_settings_that_differ_and_no_others_are_listed(there):
    told = {line["name"]: line["values"] for line in side_by_side(runs(there, "low", "high"))["settings"]}
    assert told == {"train.lr": [1e-4, 3e-2]}
    told = {line["name"]: line["values"] for line in side_by_side(runs(there, "high", "ia3"))["settings"]}
    assert told["method.name"] == ["lora", "ia3"]
    assert told["method.rank"][1] is None
    assert "train.lr" not in told


def test_a_run_on_other_rows_is_shown_and_not_compared(there):
    found = side_by_side(runs(there, "low", "other", "high"))
    assert found["not_comparable"] == {"other": "it answered other rows"}
    other = found["runs"][1]
    assert (other["comparable"], other["score"], other["to_reference"]) == (False, None, None)
    assert other["seconds"] > 0
    assert "other" in found["curves"]
    assert found["rows"][0]["answers"].keys() == {"low", "high"}
    assert set(found["answer"]["leaders"]) <= {"low", "high"}


def test_where_nothing_can_be_compared_no_winner_is_told(there):
    found = side_by_side(runs(there, "low", "other"))
    assert found["answer"] is None
    assert found["rows"] == []
    page = write_side_by_side(runs(there, "low", "other"), there / "none.html").read_text()
    assert "No two of these runs can be compared" in page


def test_a_run_without_answers_has_its_place(there, tmp_path):
    (tmp_path / "cut").mkdir()
    for name in ("run.yaml", "metrics.jsonl", "speed.jsonl"):
        (tmp_path / "cut" / name).write_bytes((there / "low" / name).read_bytes())
    found = side_by_side([there / "high", tmp_path / "cut", there / "ia3"])
    assert found["not_comparable"] == {"cut": "it has kept no answers"}
    assert found["runs"][1]["status"] == "no result yet"
    assert "no result yet" in write_side_by_side([there / "high", tmp_path / "cut"], tmp_path / "page.html").read_text()


def test_what_is_no_pair_of_runs_is_refused(there, tmp_path):
    with pytest.raises(ConfigError, match="two different runs"):
        side_by_side(runs(there, "low", "low"))
    with pytest.raises(ReportError, match="there is no run at"):
        side_by_side(runs(there, "low", "gone"))
    with pytest.raises(ConfigError, match="is a folder"):
        write_side_by_side(runs(there, "low", "high"), tmp_path)
    for content in (b'{"prompt": "a"}\n', b"", b"<p>"):
        (tmp_path / "kept").write_bytes(content)
        with pytest.raises(ConfigError, match="is there already, and is no page"):
            write_side_by_side(runs(there, "low", "high"), tmp_path / "kept")
        assert (tmp_path / "kept").read_bytes() == content
    with pytest.raises(ConfigError, match="--out is for the page of several runs"):
        app(["report", str(there / "low"), "--out", str(tmp_path / "x.html")], standalone_mode=False)


def test_the_command_writes_the_page_beside_the_runs(there, capsys):
    app(["report", str(there / "low"), str(there / "ia3")], standalone_mode=False)
    assert capsys.readouterr().out.strip() == f"page: {there / 'side-by-side.html'}"
    assert "low" in (there / "side-by-side.html").read_text()


def flat(value) -> str:
    return json.dumps({key: item for key, item in value.items() if key not in ("rows", "answer")})


def test_page_and_figures_tell_no_path_of_the_machine(there, monkeypatch, tmp_path):
    """Neither where the runs lie, nor what a run's configuration took from there by itself."""
    home = there.parent
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(there / "high", tmp_path / "mine")
    result = json.loads((tmp_path / "mine" / "result.json").read_text())
    result["run"]["data"]["train"] = str(tmp_path / "mine" / "rows.jsonl")
    result["run"]["model"]["adapter"] = str(there / "low" / "adapter")
    result["run"]["eval"]["general"] = "/srv/texts/mine.txt"
    (tmp_path / "mine" / "result.json").write_text(json.dumps(result))
    found = side_by_side([there / "low", there / "ia3", Path("mine")])
    told = {line["name"]: line["values"] for line in found["settings"]}
    assert told["data.train"] == ["~/rows.jsonl", "~/rows.jsonl", "mine/rows.jsonl"]
    assert told["model.adapter"] == [None, None, "~/runs/low/adapter"]
    assert told["eval.general"][2] == "/srv/texts/mine.txt"  # as it was typed
    assert [row["folder"] for row in found["runs"]] == ["~/runs/low", "~/runs/ia3", "mine"]
    page = write_side_by_side([there / "low", Path("mine")], tmp_path / "page.html").read_text()
    for text in (flat(found), page):
        assert str(there.parent) not in text
        assert str(tmp_path) not in text


def test_runs_that_lie_outside_are_named_from_where_all_of_them_lie(there, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = side_by_side(runs(there, "low", "ia3"))
    assert [row["folder"] for row in found["runs"]] == ["low", "ia3"]
    shutil.copytree(there / "high", there / "older" / "low")
    try:
        found = side_by_side([there / "low", there / "older" / "low"])
    finally:
        shutil.rmtree(there / "older")
    assert [row["run"] for row in found["runs"]] == list(found["curves"]) == ["low", "older/low"]


def test_trials_of_a_comparison_name_their_rows_by_its_folder(there, monkeypatch, tmp_path):
    mine = tmp_path / "which"
    for name in ("low", "high"):
        trial = mine / "trials" / name
        shutil.copytree(there / name, trial)
        result = json.loads((trial / "result.json").read_text())
        result["run"]["data"]["train"] = str(mine / "data" / f"{name}.jsonl")
        (trial / "result.json").write_text(json.dumps(result))
    monkeypatch.chdir(there)
    found = side_by_side([mine / "trials" / "low", mine / "trials" / "high"])
    told = {line["name"]: line["values"] for line in found["settings"]}
    assert told["data.train"] == ["data/low.jsonl", "data/high.jsonl"]
    assert str(tmp_path) not in flat(found)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1400, "dark")])
def test_the_page_opens_and_its_figures_are_those_of_the_json(page, there, width, scheme):
    folders = runs(there, "low", "high", "other")
    result = json.loads(json.dumps(side_by_side(folders)))
    path = write_side_by_side(folders, there / f"{width}.html")
    page.open(path, width, scheme)
    found = state(page)
    assert (found["errors"], found["chartsDrawn"], found["overflow"], found["scheme"]) == ("", "2", "0", scheme)
    assert page.problems == []
    assert page.requests == [path.resolve().as_uri()]
    figures = page.read(
        "[...document.querySelectorAll('[data-key]')].map(e => [e.dataset.key, JSON.parse(e.dataset.value)])"
    )
    assert len(figures) > 20
    for key, value in figures:
        assert value == at(result, key), key
    assert "other is not comparable with low" in page.read("document.querySelector('.note').textContent")
    page.read("document.querySelector('tr.row').click()")
    shown = page.read("[...document.querySelectorAll('tr.opened h4')].map(e => e.textContent)")
    assert shown[:4] == ["target", "untouched model", "low", "high"]
    page.read("document.querySelector('[data-download=json]').click()")
    assert page.read("document.documentElement.dataset.downloaded").startswith("json ")
    assert page.problems == []
