"""Whole comparisons: fair, measured on rows that no choice has seen, and gone on with after anything."""

from __future__ import annotations

import csv
import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

import microplane
from microplane.cli import app as cli
from microplane.comparison import compare as module
from microplane.comparison.forecast import expected
from microplane.comparison.plan import Plan, Trial
from microplane.comparison.search import GRID
from microplane.comparison.table import Answers, scored
from microplane.comparison.trials import Trials
from microplane.config.build import read_yaml
from microplane.data.progress import Silent
from microplane.errors import ConfigError, DataError, TrainingError
from microplane.files import lock
from microplane.runs.result import Sample, keep_answers
from tests.comparison.kit import SETS, in_this_process, place, rows, table, write

HOW = {"methods": "lora,ia3", "seeds": 2, "set": SETS, "learning_curve": True}
TRIALS = 2 * (7 + 2 + 2) + 2 * 2  # of two methods, and the learning curve's


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison that nothing disturbed, and its folder's surroundings."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        made = in_this_process(patch)
        model, data = place(folder)
        done = microplane.compare(model, data, out=folder / "whole", **HOW)
    return done, made, model, data


@pytest.fixture
def again(whole, tmp_path, monkeypatch):
    """The same may be begun anew: its arguments, and the names of trials as they are made."""
    _, _, model, data = whole
    return (model, data), {**HOW, "out": tmp_path / "again"}, in_this_process(monkeypatch)


def runs(done, stage):
    folders = [path for path in (done.folder / "trials").iterdir() if f"-{stage}-" in path.name]
    return [json.loads((path / "result.json").read_text()) for path in folders]


def test_every_method_gets_the_same_trials_on_the_same_rows(whole):
    done, made, *_ = whole
    assert len(made) == len(set(made)) == TRIALS
    ledger = done.result["ledger"]
    for stage, count in (("short", 7), ("half", 2), ("final", 2)):
        lines = {name: [x for x in ledger if (x["method"], x["stage"]) == (name, stage)] for name in ("lora", "ia3")}
        assert {len(found) for found in lines.values()} == {count}
        steps = {tuple(x["steps"] for x in found) for found in lines.values()}
        assert len(steps) == 1
        read = {(x["seed"], x["tokens"]) for found in lines.values() for x in found}
        assert len(read) == len({seed for seed, _ in read})  # with a seed everybody reads the same tokens
    plan = done.result["plan"]
    assert sum(x["steps"] for x in ledger) <= 2 * plan["most_steps"] * (7 / 4 + 1 + 2 + 3 / 4) + 30


def kinds(trials):
    """What tells trials apart before their rates are found; whose the parts are is known late."""
    told = [(x["stage"] != "part" and x["method"], x["stage"], x["steps"], x["seed"], x["percent"]) for x in trials]
    return sorted(told, key=str)


def test_the_trials_are_those_that_a_forecast_lists(whole):
    done, *_ = whole
    listed = [asdict(one) for one in expected(Plan.read(done.folder))]
    assert kinds(listed) == kinds(done.result["ledger"])
    for name in ("lora", "ia3"):
        grid, made = ([x["lr"] for x in every if (x["method"], x["stage"]) == (name, "short")][: len(GRID)]
                      for every in (listed, done.result["ledger"]))  # fmt: skip
        assert grid == made


def test_no_choice_has_seen_the_test_rows(whole):
    done, *_ = whole
    for stage in ("short", "half"):
        assert {run["data"]["test_rows"] for run in runs(done, stage)} == {0}
        assert {run["metrics"]["split"] for run in runs(done, stage)} == {"validation"}
    assert {run["metrics"]["split"] for run in runs(done, "final")} == {"test"}
    data = done.folder / "data"
    train, test = (set((data / f"{name}.jsonl").read_text().splitlines()) for name in ("train", "test"))
    validation = set((data / "validation.jsonl").read_text().splitlines())
    assert (len(train), len(validation), len(test)) == (72, 8, 20)
    assert {json.loads(line)["prompt"] for line in train | validation | test} == {row["prompt"] for row in rows()}


def test_the_learning_curve_is_of_nested_rows_with_whole_schedules(whole):
    done, *_ = whole
    data = done.folder / "data"
    sizes = {name: set((data / f"{name}.jsonl").read_text().splitlines()) for name in ("train-25", "train-50", "train")}
    assert sizes["train-25"] < sizes["train-50"] < sizes["train"]
    assert [len(lines) for lines in sizes.values()] == [18, 36, 72]
    curve, finals = done.result["learning_curve"], [x for x in done.result["ledger"] if x["stage"] == "final"]
    assert curve["method"] == done.result["answer"]["advised"]
    parts = [x for x in done.result["ledger"] if x["stage"] == "part"]
    whole_runs = [x for x in finals if x["method"] == curve["method"]]
    assert {(x["percent"], x["seed"]) for x in parts} == {(percent, seed) for percent in (25, 50) for seed in (0, 1)}
    assert {x["method"] for x in parts} == {curve["method"]}
    assert {x["lr"] for x in parts} == {x["lr"] for x in whole_runs}
    for line in parts:
        run = json.loads((done.folder / "trials" / line["name"] / "result.json").read_text())
        assert run["data"]["train_rows"] == 72 * line["percent"] // 100
        assert (run["data"]["validation_rows"], run["data"]["test_rows"], run["metrics"]["rows"]) == (8, 20, 20)
        assert run["train"]["steps_planned"] == -(-whole_runs[0]["steps"] * line["percent"] // 100)
    for point, percent in zip(curve["points"], (25, 50, 100), strict=True):
        names = [x["name"] for x in (whole_runs if percent == 100 else parts) if x["percent"] == percent]
        runs_ = [json.loads((done.folder / "trials" / name / "result.json").read_text()) for name in names]
        assert point["rows"] == 72 * percent // 100
        assert point["value"] == pytest.approx(sum(run["metrics"]["after"]["accuracy"] for run in runs_) / 2)
    assert "With one seed" not in curve["sentence"]
    assert curve["sentence"] in (done.folder / "comparison.md").read_text()
    assert curve["twice"]["rows"] == 144
    assert curve["twice"]["gain"]["low"] <= curve["twice"]["gain"]["high"]
    assert "--learning-curve" in done.result["command"]


def test_the_figures_are_those_of_the_runs(whole):
    done, *_ = whole
    finals = runs(done, "final")
    for row in done.methods:
        own = [run for run in finals if run["method"]["name"] == row["method"]]
        assert row["score"]["value"] == pytest.approx(sum(run["metrics"]["after"]["accuracy"] for run in own) / 2)
        assert row["seconds"] == pytest.approx(sum(run["train"]["seconds"] for run in own) / 2)
        assert row["peak_memory_bytes"] == max(run["train"]["peak_memory_bytes"] for run in own)
        assert row["trainable_parameters"] == own[0]["method"]["trainable_parameters"]
        assert row["merges"] == own[0]["method"]["facts"]["mergeable"]
        forgotten = [run["general"]["difference"] for run in own]
        assert sorted(row["forgetting"]["by_seed"]) == sorted(forgotten)
        assert row["forgetting"]["difference"] == pytest.approx(sum(forgotten) / 2)
    baselines = {row["name"]: row["score"]["value"] for row in done.result["baselines"]}
    theirs = finals[0]["metrics"]["trivial"]
    assert baselines.keys() == {*theirs, "untouched model"}
    assert any(name.startswith("untouched model, ") and name.endswith("-shot") for name in theirs)
    for name, scores in theirs.items():
        assert baselines[name] == pytest.approx(scores["accuracy"])
    assert baselines["untouched model"] == finals[0]["metrics"]["before"]["accuracy"]


def test_the_rate_that_is_taken_did_best_and_edges_are_flagged(whole):
    done, *_ = whole
    for name, found in done.result["search"].items():
        half = {x["lr"]: x["validation_loss"] for x in found["points"] if x["stage"] == "half"}
        assert found["taken"] == min(half, key=half.get)
        rates = [x["lr"] for x in found["points"] if x["stage"] == "short"]
        edge = {min(rates): "lowest", max(rates): "highest"}.get(found["taken"])
        assert found["edge"] == edge
        assert any(name in note and "may lie beyond" in note for note in done.result["notes"]) == bool(edge)
        assert next(row["lr"] for row in done.methods if row["method"] == name) == found["taken"]


def test_the_files_tell_the_same(whole):
    done, *_ = whole
    there = {path.name for path in done.folder.iterdir()}
    assert there >= {
        "comparison.json",
        "comparison.md",
        "comparison.csv",
        "comparison.html",
        "ledger.json",
        "plan.json",
    }
    assert json.loads((done.folder / "comparison.json").read_text()) == json.loads(json.dumps(done.result))
    text = (done.folder / "comparison.md").read_text()
    assert done.result["answer"]["sentences"][0] in text
    lines = list(csv.DictReader((done.folder / "comparison.csv").open()))
    assert [line["name"] for line in lines if line["kind"] == "method"] == [row["method"] for row in done.methods]
    assert float(lines[0]["score"]) == done.methods[0]["score"]["value"]
    assert float(lines[0]["forgetting"]) == done.methods[0]["forgetting"]["difference"]
    assert f"| {done.methods[0]['forgetting']['difference']:+.3f} |" in text


def test_one_that_is_done_makes_nothing_again(whole, monkeypatch):
    done, *_ = whole
    before, made = table(done.folder), in_this_process(monkeypatch)
    again = microplane.compare(resume=done.folder)
    assert made == []
    assert table(done.folder) == before
    assert again.answer == done.answer


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 20, 24])
def test_one_that_is_interrupted_goes_on_to_the_same_table(whole, again, monkeypatch, at):
    done, *_ = whole
    given, how, made = again

    def stop(trial):
        if len(made) == at:
            raise KeyboardInterrupt

    made = in_this_process(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        microplane.compare(*given, **how)
    assert interrupt.value.__notes__ == [f"all is kept; go on with: microplane compare --resume {how['out']}"]
    made = in_this_process(monkeypatch)
    microplane.compare(resume=how["out"])
    assert len(made) == TRIALS - (at - 1)
    assert table(how["out"]) == table(done.folder)


@pytest.mark.slow
def test_a_method_that_cannot_be_trained_is_a_row_with_its_reason(again, monkeypatch):
    given, how, _ = again
    made = in_this_process(monkeypatch, lambda trial: "no room" if trial.method == "ia3" else None)
    done = microplane.compare(*given, **how)
    assert sum(name.startswith("ia3") for name in made) == 1
    assert done.result["failed"] == [{"method": "ia3", "reason": "no room"}]
    assert [row["method"] for row in done.methods] == ["lora"]
    assert done.answer.splitlines()[-1].startswith("lora scores ") or "Fine-tuning" in done.answer
    in_this_process(monkeypatch)
    assert {row["method"] for row in microplane.compare(resume=done.folder).methods} == {"lora", "ia3"}


@pytest.mark.slow
def test_a_rate_or_a_seed_that_fails_costs_itself_alone(again, monkeypatch):
    given, how, _ = again

    def fails(trial):
        too_high = trial.method == "lora" and trial.lr > 0.019
        return "diverged" if too_high or (trial.stage == "final" and trial.seed == 1) else None

    in_this_process(monkeypatch, fails)
    done = microplane.compare(*given, **how)
    assert {row["method"] for row in done.methods} == {"lora", "ia3"}
    assert all(row["seeds"] == [0] for row in done.methods)
    assert all(row["lr"] <= 0.019 for row in done.methods if row["method"] == "lora")
    assert sum("1 of 2 seeds failed" in note for note in done.result["notes"]) == 2
    failed = [line for line in done.result["ledger"] if line["status"] == "failed"]
    assert {line["reason"] for line in failed} == {"diverged"}


@pytest.mark.slow
def test_nothing_that_can_be_trained_is_an_error(again, monkeypatch):
    given, how, _ = again
    in_this_process(monkeypatch, lambda trial: "no room")
    with pytest.raises(TrainingError, match="no method could be trained. lora: no room; ia3: no room"):
        microplane.compare(*given, **how)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "lora,lorra"}, "there is no method 'lorra'"),
        ({"methods": ["lora", "lora"]}, "one of them stands there twice"),
        ({"steps": 20}, r"--steps 20 is too little for 2 methods with their search and 2 seeds: at least 44 steps"),
        ({"tokens": "100"}, "--tokens 100 is too little for 2 methods"),
        ({"budget": "2 parsecs"}, "is no time"),
        ({"set": {"eval.general": "default"}}, "eval.general cannot be set for a comparison: use --general"),
        ({"metric": "rmse"}, "--metric rmse: rows with answers in text cannot be compared by it"),
        ({"seeds": 0}, "--seeds 0"),
        ({"set": {"train.lr": 1e-3}}, "train.lr cannot be set for a comparison: each method's rate is searched"),
        ({"set": {"method.bottleneck": 3}}, "none of the methods lora, ia3 has this knob"),
        ({"set": {"eval.rows": 0}}, "leaves nothing to compare"),
        ({"methods": "lora,prompt", "set": {"method.length": 200}}, "no room is left for the rows"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_message_and_leaves_nothing(again, changes, message):
    given, how, made = again
    with pytest.raises(ConfigError, match=message):
        microplane.compare(*given, **{**how, **changes})
    assert made == []
    assert not how["out"].exists()


def test_plain_text_has_nothing_to_be_compared_by(again, tmp_path):
    (model, _), how, _ = again
    data = write(tmp_path, "text.jsonl", [{"text": f"only text {number}"} for number in range(60)])
    with pytest.raises(ConfigError, match="holds plain text"):
        microplane.compare(model, data, **how)


def test_parts_of_too_few_rows_are_none(again, tmp_path):
    (model, _), how, made = again
    with pytest.raises(DataError, match="--learning-curve needs 32 training rows at least, and there are 20"):
        microplane.compare(model, write(tmp_path, "few.jsonl", rows(28)), **how)
    assert (made, how["out"].exists()) == ([], False)


def test_it_does_not_go_on_with_other_rows_or_another_model(whole, tmp_path, monkeypatch):
    done, _, model, data = whole
    with pytest.raises(ConfigError, match=f"goes on with the data {data}, not other.jsonl"):
        microplane.compare(model, "other.jsonl", resume=done.folder)
    with pytest.raises(ConfigError, match="takes everything from that comparison"):
        microplane.compare(resume=done.folder, steps=500)
    with pytest.raises(ConfigError, match="holds no comparison"):
        microplane.compare(resume=tmp_path)


@pytest.mark.slow
def test_rows_that_have_changed_are_noticed(again, tmp_path, monkeypatch):
    (model, _), how, _ = again
    data = write(tmp_path, "mine.jsonl", rows(60))

    def stop(trial):
        raise KeyboardInterrupt

    in_this_process(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        microplane.compare(model, data, **how)
    write(tmp_path, "mine.jsonl", rows(61))
    with pytest.raises(DataError, match=r"mine\.jsonl have changed since"):
        microplane.compare(resume=how["out"])


def test_a_folder_is_one_comparisons_and_one_processes(whole, again):
    done, *_ = whole
    given, how, _ = again
    with pytest.raises(ConfigError, match="exists. Go on with: microplane compare --resume"):
        microplane.compare(*given, **{**how, "out": done.folder})
    held = lock(done.folder)
    assert held is not None
    with pytest.raises(ConfigError, match="is running in another process"):
        microplane.compare(resume=done.folder)
    held.release()


@pytest.mark.slow
def test_a_budget_of_time_is_reckoned_from_a_few_steps(again):
    given, how, made = again
    done = microplane.compare(*given, **{**how, "budget": "1h"})
    assert sum("-probe-" in name for name in made) == 2
    plan = Plan.read(done.folder)
    assert plan.steps == plan.most_steps  # an hour is more than one pass takes
    assert {run["metrics"]["split"] for run in runs(done, "probe")} == {"validation"}
    assert made[:2] == [line["name"] for line in done.result["ledger"]][:2]
    before, count = table(done.folder), len(made)
    microplane.compare(resume=done.folder)  # finds its probes again
    assert (table(done.folder), len(made)) == (before, count)


def test_a_budget_of_time_can_be_too_small(again):
    given, how, _ = again
    with pytest.raises(ConfigError, match=r"at least [\d,]+ s are needed here"):
        microplane.compare(*given, **{**how, "budget": "1s"})


@pytest.mark.slow
def test_a_budget_of_steps_is_kept(again):
    given, how, _ = again
    done = microplane.compare(*given, **{**how, "steps": 60, "methods": "lora", "seeds": 1})
    assert 45 <= sum(line["steps"] for line in done.result["ledger"]) <= 60


@pytest.mark.slow
def test_a_forecast_lists_the_trials_and_leaves_nothing(again, tmp_path):
    given, how, made = again
    del how["out"]
    found = module.forecast(*given, **how)
    assert [name.split("-")[1] for name in made] == ["probe", "probe"]
    assert len(found.trials) == TRIALS
    assert found.seconds.keys() == found.memory.keys() == {"lora", "ia3"}
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert list(tmp_path.iterdir()) == []


def test_the_forecast_of_a_budget_of_time_lists_its_probes_too(whole, monkeypatch, capsys):
    _, _, model, data = whole
    made = in_this_process(monkeypatch)
    monkeypatch.setattr("sys.argv", ["microplane", "compare", model, data, "-m", "ia3", "--seeds", "1", "--budget"])
    sets = [part for name, value in SETS.items() for part in ("--set", f"{name}={value}")]
    monkeypatch.setattr("sys.argv", [*sys.argv, "1h", "--dry-run", "--json", "--quiet", *sets])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["stage"] for one in found["trials"]] == ["probe", *["short"] * 7, *["half"] * 2, "final"]
    assert made == [found["trials"][0]["name"]]
    assert found["seconds"]["ia3"] > 0


def test_a_forecast_of_methods_that_all_fail_is_an_error(whole, monkeypatch):
    _, _, model, data = whole
    in_this_process(monkeypatch, lambda trial: "no room")
    with pytest.raises(TrainingError, match="no method could be trained. lora: no room; ia3: no room"):
        module.forecast(model, data, **HOW)


def test_a_process_that_an_earlier_sitting_began_just_now_is_waited_for(whole, tmp_path):
    """It has no folder yet when one looks, and takes it before the process that is begun meanwhile."""
    done, *_ = whole
    trial = Trial("lora", "short", 1e-3, 5)

    class Slower:
        at_once, threads = 1, None

        def begin(self, command, log):
            log.touch()
            (place := trials.place(trial)).mkdir(parents=True)
            held = lock(place)

            def end():
                (place / "result.json").write_text('{"status": "success"}')
                (place / "report.html").touch()
                held.release()

            threading.Timer(0.3, end).start()
            return SimpleNamespace(wait=lambda seconds: 1, interrupt=lambda: None)

    trials = Trials(tmp_path, Plan.read(done.folder), Silent(), Slower())
    assert trials.run(trial).ok


LABELS = {name: value for name, value in SETS.items() if not name.startswith("eval.")}


def labelled(count=120):
    return [
        {"text": f"{'good' if i % 3 else 'bad'} film number {i}", "label": "yes no no".split()[i % 3]}
        for i in range(count)
    ]


@pytest.mark.slow
def test_labels_with_test_rows_of_their_own(again, tmp_path):
    (model, _), how, _ = again
    for name, part in (("train", labelled()[:90]), ("test", labelled()[90:])):
        write(tmp_path / "split", f"{name}.jsonl", part)
    given = LABELS | {"data.task": "classification"}
    done = microplane.compare(model, tmp_path / "split", **{**how, "seeds": 1, "set": given})
    assert done.result["metric"]["name"] == "accuracy"
    assert done.result["metric"]["rows"] == 30
    assert done.result["plan"]["counts"]["test"] == 30
    names = {row["name"] for row in done.result["baselines"]}
    assert names == {"majority", "TF-IDF + logistic regression", "untouched model"}
    assert "as given" in done.result["notes"][0]


@pytest.mark.slow
def test_numbers_are_compared_by_their_error(again, tmp_path):
    (model, _), how, _ = again
    lines = [{"text": f"{'x' * (i % 9)} long", "label": float(i % 9)} for i in range(90)]
    data, given = write(tmp_path, "numbers.jsonl", lines), LABELS | {"data.task": "regression"}
    done = microplane.compare(model, data, **{**how, "seeds": 1, "set": given})
    metric = done.result["metric"]
    assert metric == {"name": "mae", "lower_is_better": True, "share": False, "rows": metric["rows"]}
    assert 0 < metric["rows"] <= 18
    scores = [row["score"]["value"] for row in done.methods]
    assert scores == sorted(scores)
    assert "%" not in done.answer


def test_one_test_row_is_too_few(again, tmp_path):
    (model, data), how, made = again
    test = write(tmp_path, "test.jsonl", rows(1))
    with pytest.raises(DataError, match="on a single row: at least 2 test rows are needed"):
        microplane.compare(model, data, **{**how, "set": SETS | {"data.test": Path(test)}})
    assert (made, how["out"].exists()) == ([], False)


def test_rows_are_as_short_for_all_as_the_method_needs_that_leaves_them_the_least_room(again, tmp_path, monkeypatch):
    """Else each method would read, and be judged by, other tokens."""
    (model, _), how, _ = again
    data = write(tmp_path, "long.jsonl", [row | {"prompt": row["prompt"] * 30} for row in rows(60)])
    in_this_process(monkeypatch, lambda trial: "not today")
    for methods, length in (("lora,ia3", 128), ("lora,prompt,ia3", 121)):
        out = tmp_path / methods
        knobs = SETS | ({"method.length": 7} if "prompt" in methods else {})
        with pytest.raises(TrainingError, match="not today"):
            microplane.compare(model, data, **{**how, "methods": methods, "out": out, "set": knobs})
        assert read_yaml(out / "trials.yaml")["data"]["max_length"] == length


def test_rows_that_nobody_can_be_judged_on_are_no_comparison():
    lines = [{"target": "1", "before": "0", "after": answer, "trivial": {}} for answer in ("nan", "nan", "2")]
    with pytest.raises(TrainingError, match="of 3 test rows 1 can be judged for all: too few to compare by"):
        scored({"lora": [Answers(lines)]}, None, "regression")


def test_answers_may_hold_other_ends_of_lines(tmp_path):
    text = "a\u2028b\x85c"
    keep_answers(tmp_path, [Sample(text, text, text, text, "rows.jsonl:1")], {"majority": [text]})
    assert Answers.of(tmp_path).said("after") == Answers.of(tmp_path).said("majority") == [text]


def test_what_a_dry_run_lists_says_which_rates_are_known(whole, monkeypatch, capsys):
    _, _, model, data = whole
    in_this_process(monkeypatch)
    sets = [part for name, value in SETS.items() for part in ("--set", f"{name}={value}")]
    monkeypatch.setattr("sys.argv", ["microplane", "compare", model, data, "-m", "ia3", "--seeds", "1", *sets])
    monkeypatch.setattr("sys.argv", [*sys.argv, "--dry-run", "--quiet"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ia3 ") and " steps " in line]
    assert [line.endswith("what the search finds") for line in lines] == [False] * 5 + [True] * 5
    assert len({line.split()[-1] for line in lines[:5]}) == 5
