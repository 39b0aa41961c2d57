"""What people share of a comparison tells no path of the machine, but for those that somebody typed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import microplane
from microplane.comparison.plan import Plan
from microplane.comparison.shown import shown
from tests.comparison.kit import SETS, in_this_process, place, rows, table

PLAN = Plan(
    model="base", data="rows.jsonl", methods=("lora",), seeds=1, metric=None, set={}, budget=None, task=None,
    rows=SimpleNamespace(train="", validation="", test=""), defaults={}, most_steps=4, tokens_per_step=1.0, counts={},
    answer_rows=2, general=None, steps=4,
)  # type: ignore[arg-type]  # fmt: skip


def fails(folder: Path):
    """(IA)^3 does, with the model's path in its reason."""
    return lambda trial: f"{folder / 'model'}: a tensor is missing" if trial.method == "ia3" else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison that was begun in a folder of its own, by names that mean something there."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch, fails(folder))
        place(folder)
        (folder / "everyday.txt").write_text("It rains.\n\nThe shop is open until six.\n")
        patch.chdir(folder)
        how = {"methods": "lora,ia3", "seeds": 1, "steps": 60, "set": SETS, "general": "everyday.txt"}
        done = microplane.compare("model", rows(), out="mine", **how)
        yield done, folder


def files(folder: Path) -> list[str]:
    return [(folder / f"comparison.{kind}").read_text() for kind in ("json", "md", "csv", "html")]


def test_page_and_figures_name_files_as_they_were_given(whole):
    done, folder = whole
    for text in files(folder / "mine"):
        assert str(folder) not in text
        assert str(Path.home()) not in text
    plan = done.result["plan"]
    assert [plan["rows"][side] for side in ("train", "validation", "test")] == [
        f"data/{side}.jsonl" for side in ("train", "validation", "test")
    ]
    assert (plan["model"], plan["data"], plan["general"]) == ("model", "rows.jsonl", "everyday.txt")
    assert done.result["general"]["text"] == "everyday.txt"
    assert done.result["failed"] == [{"method": "ia3", "reason": "model: a tensor is missing"}]
    assert " --general everyday.txt " in done.result["command"]
    assert done.result["command"].startswith("microplane compare model rows.jsonl ")
    assert "Test rows: 20% of the rows" in done.result["notes"][0]


@pytest.mark.parametrize("age", ["this version's", "an older one's"])
def test_it_goes_on_from_elsewhere_and_tells_the_same(whole, monkeypatch, tmp_path, age):
    """Also under another name of its folder, and with a plan that kept no name of the text."""
    done, folder = whole
    before, command = table(folder / "mine"), done.result["command"]
    if age != "this version's":
        plan = json.loads((folder / "mine" / "plan.json").read_text())
        assert Path(plan["rows"]["train"]).is_absolute()
        del plan["general_name"]
        (folder / "mine" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "link").symlink_to(folder / "mine")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(next((folder / "mine" / "trials").glob("lora-final*")))
    in_this_process(monkeypatch, fails(folder))
    again = microplane.compare(resume="link")
    assert not any(str(folder) in text or str(tmp_path) in text for text in files(folder / "mine"))
    assert again.result["plan"]["rows"]["train"] == "data/train.jsonl"
    assert again.result["command"].partition(" --general everyday.txt")[1]
    assert table(folder / "mine") == before
    if age == "this version's":
        assert again.result["command"].replace(str(folder) + "/", "") == command


def plan(folder: Path, **values) -> Plan:
    copied = {side: str(folder / "data" / f"{side}.jsonl") for side in ("train", "validation", "test")}
    return replace(PLAN, rows=microplane.comparison.rows.ComparisonRows(**copied, told="", source=""), **values)


def reason(told: str, folder: Path, **values) -> str:
    result = {"plan": {"general_name": None}, "ledger": [{"reason": told}]}
    return shown(result, folder, plan(folder.absolute(), **values))["ledger"][0]["reason"]


def test_paths_in_reasons(tmp_path, monkeypatch):
    home = tmp_path / "ann"
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.chdir(tmp_path)
    mine = Path("runs/mine")
    here = tmp_path / mine
    here.mkdir(parents=True)
    (here / "trials.yaml").write_text(json.dumps({"model": {"name": f"{tmp_path}/base"}}))
    assert reason(f"{here}/trials/a: gone", mine) == "trials/a: gone"
    assert reason(f"{here}: no room", mine) == "mine: no room"
    assert reason(f"'{here}-2/x' is another's", mine) == f"'{here}-2/x' is another's"
    assert reason(f"{tmp_path}/base/config.json: no JSON; see {home}/.cache/y", mine) == (
        "base/config.json: no JSON; see ~/.cache/y"
    )
    assert reason(f"{home}/typed.jsonl:3", mine, data=f"{home}/typed.jsonl") == f"{home}/typed.jsonl:3"
    assert reason(f"{home}/test.csv:3", mine, set={"data.test": f"{home}/test.csv"}) == f"{home}/test.csv:3"
    assert reason("a/b, 1/2 and /", mine) == "a/b, 1/2 and /"


def test_without_a_home_no_slash_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path(os.sep))
    assert reason("see /etc/x or 1 / 2", tmp_path) == "see /etc/x or 1 / 2"


def test_answers_and_questions_stay_as_they_are(tmp_path):
    texts = [{"prompt": f"list {tmp_path}/data", "answers": {"lora": f"{Path.home()}"}}]
    assert shown({"plan": {"general_name": None}, "rows": texts}, tmp_path, plan(tmp_path))["rows"] == texts
