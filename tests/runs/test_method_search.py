"""`--method auto` and `method.rank = auto`: what decides, that it is decided once, and what it costs."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import microplane
from microplane.config.build import assemble
from microplane.errors import ConfigError
from microplane.evaluation.nearness import Paired, ignores_inputs, nearness
from microplane.methods import METHODS, make_method
from microplane.objectives.next_token import NextToken
from microplane.report.page import write_report
from microplane.runs import choice as rules
from microplane.runs import method_search
from microplane.runs.choice import Candidate, Choice, decide_method, decide_rank, ladder, raised_enough, trial_share
from microplane.runs.method_search import left_open, refuse, stand_in
from microplane.training.ranks import ALONE
from tests.data.preparing.test_doubts import asked
from tests.labels import encoder_folder, reviews
from tests.tiny import SHALLOW, MemoryDataset, copy_task, save_tiny_folder, tiny

SETS = {"train.threads": 1, "model.dtype": "float32", "eval.rows": 0, "train.steps": 108, "train.batch_size": 2}
SETS |= {"train.eval_every": 108}


def candidate(name: str, loss: float, noise: float = 0.0) -> Candidate:
    """With the losses of ten groups of rows; differences of two such are of this size by chance."""
    groups = [[10 * (loss + noise * (-1) ** number * (number + 1) / 10), 10] for number in range(10)]
    return Candidate(name, {"name": name}, loss=loss, steps=8, check={"validation_loss": loss, "groups": groups})


def method_choice(*candidates: Candidate, start: str = "lora") -> Choice:
    found = Choice("method.name", 400, candidates=list(candidates), start=start, rule="by its rows")
    decide_method(found)
    return found


def test_what_the_rule_begins_with_stays_unless_another_is_better_beyond_chance():
    close = method_choice(candidate("lora", 1.0), candidate("full", 0.9, noise=1.0))
    assert close.chosen == "lora"
    assert "no trial ended lower beyond chance" in close.why
    assert "not told apart" in close.candidates[1].why
    clear = method_choice(candidate("lora", 1.0), candidate("full", 0.9))
    assert clear.chosen == "full"
    assert "lower than that of lora" in clear.why
    assert "worse than full beyond chance" in clear.candidates[0].why
    assert "its trial ended lowest" in method_choice(candidate("lora", 0.8), candidate("full", 0.9)).why


def test_what_cannot_be_trained_is_not_taken():
    missing = Candidate("lora", {}, reason="no room\nat all")
    found = method_choice(missing, candidate("full", 0.9), candidate("head-only", 0.7))
    assert found.chosen == "head-only"
    assert found.candidates[0].why == "dropped: no room"
    alone = method_choice(missing, Candidate("full", {"name": "full"}))
    assert alone.chosen == "full"
    assert "no other one can be trained here" in alone.why


def rank_choice(*losses: float) -> Choice:
    tried = [candidate(f"rank {2**power}", loss) for power, loss in enumerate(losses, start=2)]
    found = Choice("method.rank", 400, candidates=tried, start="rank 16")
    decide_rank(found)
    return found


def test_the_lowest_rank_that_none_beats():
    assert rank_choice(1.0, 0.9, 0.895, 0.89).chosen == "rank 8"  # less than a fiftieth is no gain
    assert rank_choice(1.0, 1.01, 0.995).chosen == "rank 4"
    assert rank_choice(1.0, 0.9, 0.8).chosen == "rank 16"
    assert "none was tried above it" in rank_choice(1.0, 0.9, 0.8).why


def test_a_rank_is_raised_while_that_pays():
    losses = [1.0, 0.9, 0.895, 0.899]
    tried = [candidate(str(number), loss) for number, loss in enumerate(losses)]
    assert not raised_enough(tried[:3])
    assert raised_enough(tried)
    assert not raised_enough([*tried[:3], candidate("late", 0.7)])


@pytest.mark.parametrize(
    ("steps", "ranks"),
    [(1000, [4, 8, 16, 32, 64]), (160, [4, 8, 16, 32, 64]), (159, [4, 8, 16, 32]), (64, [8, 16]), (63, [16])],
)
def test_as_many_ranks_as_there_are_steps_for(steps, ranks):
    assert ladder(16, steps) == ranks
    assert len(ranks) == 1 or len(ranks) * int(trial_share(steps, len(ranks)) * steps) <= rules.PART * steps


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if "rank" in kind.model_fields])
def test_every_method_with_a_rank_takes_auto(name):
    config = assemble(given={"method.name": name, "method.rank": "auto", "data.train": "rows.jsonl"})
    if name in ("lora", "lora-auto"):  # whose rank grows during the run
        assert left_open(config) is None
        assert make_method(config.method).name == "lora-auto"
        return
    assert left_open(config) == "method.rank"
    kind = METHODS[name]
    assert make_method(stand_in(config).method) == kind()
    own = kind.model_fields["rank"].default
    for rank in ladder(own, 1000):
        assert make_method({"name": name, **kind.at_rank(rank)}).rank == rank
    assert make_method({"name": name, **kind.at_rank(own)}) == kind()


def test_what_cannot_be_chosen_is_refused():
    auto = {"method.name": "auto", "data.train": "rows.jsonl"}
    config = assemble(given=auto)
    refuse(config, ALONE)
    with pytest.raises(ConfigError, match="auto with 2 processes: choose with one"):
        refuse(config, replace(ALONE, size=2))
    with pytest.raises(ConfigError, match="has its method and rank"):
        refuse(assemble(given=auto | {"model.adapter": "runs/other"}), ALONE)
    with pytest.raises(ConfigError, match="a rate suits one method"):
        microplane.train("smollm2", "rows.jsonl", method="auto", set={"train.lr": 1e-3})
    with pytest.raises(ConfigError, match=r"method\.energy: none of "):
        microplane.train("smollm2", "rows.jsonl", method="auto", set={"method.energy": 0.5})
    with pytest.raises(ConfigError, match=r"method\.rank"):
        microplane.train("smollm2", "rows.jsonl", method="ia3", set={"method.rank": "auto"})


def test_a_run_whose_method_is_chosen(tmp_path):
    """It is the run that was given the method, to the bit; what decided stands in the result, run.yaml and the page."""
    model, sets = save_tiny_folder(tmp_path / "model", **SHALLOW), SETS | {"runs": str(tmp_path / "runs")}
    said: list[str] = []
    run = microplane.train(model, asked(60), method="auto", set=sets | {"method.rank": 4}, watch=Heard(said))
    found = run.result["choice"]
    names = [one["name"] for one in found["candidates"]]
    assert names == ["lora", "full", "ia3"]
    assert found["steps"] == sum(one["steps"] for one in found["candidates"]) <= rules.PART * 108
    assert len({one["tokens"] for one in found["candidates"]}) == 1  # the same rows
    assert found["near"]["loss"] > 0
    assert all(one["memory_bytes"] > 0 and one["loss"] > 0 and one["why"] for one in found["candidates"])
    told = [line for line in said if line.startswith("auto")]
    assert len(told) == 1 + 3 + 1
    assert found["chosen"] in told[-1]
    chosen = run.result["run"]["method"]
    assert chosen["name"] == found["chosen"] == run.result["method"]["name"]
    assert chosen.get("rank", 4) == 4
    assert not (run.folder / "trials").exists()
    assert f"name: {found['chosen']}" in (run.folder / "run.yaml").read_text()
    assert "Choice of the method" in write_report(run.folder).read_text()
    given = {f"method.{name}": value for name, value in chosen.items() if name != "name"}
    alone = microplane.train(model, asked(60), method=found["chosen"], set=sets | given)
    assert (alone.folder / "metrics.jsonl").read_bytes() == (run.folder / "metrics.jsonl").read_bytes()


class Heard:
    def __init__(self, said: list[str]):
        self.say = said.append

    def progress(self, what):
        return lambda done, total: None

    def record(self, record):
        pass


def test_it_is_decided_once(tmp_path, monkeypatch):
    """A run that goes on takes what was found, also where it was killed before run.yaml had it."""
    encoder, sets = encoder_folder(tmp_path / "model", **SHALLOW), SETS | {"runs": str(tmp_path / "runs")}
    said: list[str] = []
    run = microplane.train(encoder, reviews(), method="auto", set=sets, watch=Heard(said))
    assert [one["name"] for one in run.result["choice"]["candidates"]] == ["lora", "full", "head-only"]
    assert sum("BertTokenizerFast" in line for line in said) <= 1  # of the trials nothing is heard
    monkeypatch.setattr(method_search, "fit", lambda *how, **knobs: pytest.fail("tried again"))
    longer = microplane.resume(run.folder, set={"train.steps": 110})
    assert longer.result["choice"] == run.result["choice"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("trial", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_that_is_killed_in_a_trial_goes_on(trial, tmp_path, monkeypatch):
    """The trials that were done are not made again, and the decision is the same."""
    encoder, sets = encoder_folder(tmp_path / "model", **SHALLOW), SETS | {"runs": str(tmp_path / "runs")}
    whole = microplane.train(encoder, reviews(), method="auto", set=sets | {"name": "whole"})
    made: list[Path] = []
    fit = method_search.fit

    def killed(prepared, model, place, *how, **knobs):
        made.append(place)
        if len(made) == trial + 1:
            raise Killed
        return fit(prepared, model, place, *how, **knobs)

    monkeypatch.setattr(method_search, "fit", killed)
    with pytest.raises(Killed):
        microplane.train(encoder, reviews(), method="auto", set=sets | {"name": "cut"})
    resumed = microplane.resume(tmp_path / "runs" / "cut")
    assert len(made) == trial + 1 + 3 - trial
    without_time = [strip(run.result["choice"]) for run in (whole, resumed)]
    assert without_time[0] == without_time[1]
    assert (resumed.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


def strip(found: dict) -> dict:
    found = json.loads(json.dumps(found))
    for one in (found, *found["candidates"]):
        one.pop("seconds")
        one.pop("memory_bytes", None)
    return found


def test_ctrl_c_in_a_trial_keeps_all(tmp_path, monkeypatch):
    encoder, sets = (
        encoder_folder(tmp_path / "model", **SHALLOW),
        SETS | {"runs": str(tmp_path / "runs"), "name": "cut"},
    )
    fit = method_search.fit

    def interrupted(*how, **knobs):
        def once(record):
            if record.get("loss") and record["step"] == 2:
                os.kill(os.getpid(), signal.SIGINT)

        return fit(*how[:4], once, *how[5:], **knobs)

    monkeypatch.setattr(method_search, "fit", interrupted)
    run = microplane.train(encoder, reviews(), method="auto", set=sets)
    assert run.result["status"] == "stopped"
    assert (run.folder / "report.html").is_file()
    monkeypatch.setattr(method_search, "fit", fit)
    done = microplane.resume(run.folder)
    assert done.result["status"] == "success"
    assert done.result["choice"]["chosen"]


def test_a_run_too_short_for_trials_goes_by_the_rule(tmp_path):
    encoder, sets = (
        encoder_folder(tmp_path / "model", **SHALLOW),
        SETS | {"runs": str(tmp_path / "runs"), "train.steps": 40},
    )
    run = microplane.train(encoder, reviews(), method="auto", set=sets)
    found = run.result["choice"]
    assert found["chosen"] == run.result["method"]["name"] == "head-only"  # few rows
    assert "too short for trials, which need 96" in found["why"]
    assert found["steps"] == 0
    assert "No trials were made" in write_report(run.folder).read_text()


def test_a_rank_is_chosen(tmp_path):
    model, sets = (
        save_tiny_folder(tmp_path / "model", **SHALLOW),
        SETS | {"runs": str(tmp_path / "runs"), "train.steps": 96},
    )
    sets |= {"method.rank": "auto", "train.lr": "auto"}
    run = microplane.train(model, asked(60), method="dora", set=sets)
    found, chosen = run.result["choice"], run.result["run"]["method"]
    assert [one["name"] for one in found["candidates"]] == ["rank 8", "rank 16", "rank 32"]
    assert found["chosen"] == f"rank {chosen['rank']}"
    assert chosen["name"] == "dora"
    assert run.result["lr_search"]["chosen"] == run.result["run"]["train"]["lr"]  # behind the choice
    assert "Choice of the rank" in write_report(run.folder).read_text()


def test_check_takes_auto(tmp_path):
    encoder = encoder_folder(tmp_path / "model", **SHALLOW)
    checked = microplane.check(encoder, reviews(), method="auto", rehearsal=False)
    assert checked.ok, checked.findings
    assert any("auto: checked with lora" in line for line in checked.facts)


class Rows(MemoryDataset):
    def labels(self, row):
        return np.empty(0, np.float32)

    def prompt_and_target(self, row):
        ids, targets = self[row]
        return ids[~targets].tolist(), ids[targets].tolist()


def copied() -> Rows:
    return Rows([(ids.tolist(), targets.tolist()) for ids, targets in copy_task().rows])


def test_shuffled_answers_are_those_of_other_rows():
    rows = copied()
    paired = Paired(rows, [0, 1, 2], [2, 0, 1])
    for number, (prompt, answer) in enumerate(zip([0, 1, 2], [2, 0, 1], strict=True)):
        ids, targets = paired[number]
        own, other = rows.prompt_and_target(prompt)[0], rows[answer]
        assert ids[~targets].tolist() == own[-int((~targets).sum()) :]
        assert ids[targets].tolist() == other[0][other[1]].tolist()
        assert len(ids) == paired.lengths[number]
    same = Paired(rows, [0, 1], [0, 1])
    assert all(np.array_equal(same[row][0], rows[row][0]) for row in (0, 1))


def test_only_a_model_that_knows_the_task_is_near():
    """One that was trained to copy finds the copy of another row's start unlikely."""
    objective, rows, known = NextToken(), copied(), tiny()
    assert abs(nearness(objective, known, rows, 512).share) < 0.1
    known.requires_grad_(True)
    optimizer = torch.optim.Adam(known.parameters(), 1e-2)
    for step in range(150):
        optimizer.zero_grad()
        batch = objective.collate(rows, list(range(step % 4 * 16, step % 4 * 16 + 16)))
        (objective.loss(known, batch) / batch.count).backward()
        optimizer.step()
    assert nearness(objective, known, rows, 512).share > 0.3


def test_a_model_ignores_its_inputs_only_where_they_change_nothing(monkeypatch):
    """One that has learnt nothing yet looks at them all the same."""
    objective, rows, model = NextToken(), copied(), tiny()
    forward, read = type(model).forward, list[int]()

    def counted(self, rows, *given, **named):
        read.append(len(rows.lengths))
        return forward(self, rows, *given, **named)

    monkeypatch.setattr(type(model), "forward", counted)
    assert not ignores_inputs(objective, model, rows, 512)
    assert read == [4, 4]  # a few rows at once, as each validation asks it

    def deaf(self, rows, *given, **named):  # every token's state is that of the first row's first
        states = forward(self, rows, *given, **named)
        return states.new_ones(states.shape)

    monkeypatch.setattr(type(model), "forward", deaf)
    assert ignores_inputs(objective, model, rows, 512)


def test_a_head_that_reads_its_rows_thirty_times_keeps_its_own_rate(tmp_path):
    """A sweep of steps over new rows found ten times its rate, and two points less."""
    encoder = encoder_folder(tmp_path / "model", **SHALLOW)

    def found(**more):
        sets = SETS | {"runs": str(tmp_path / "runs"), "train.lr": "auto", "train.steps": None, **more}
        return microplane.train(encoder, reviews(), method="head-only", set=sets).result

    kept = found()
    own = METHODS["head-only"].default_lr
    assert kept["lr_search"]["rates"] == []
    assert kept["lr_search"]["chosen"] == kept["run"]["train"]["lr"] == own
    assert "30 times" in kept["lr_search"]["why"]
    assert write_report(tmp_path / "runs" / kept["name"]).is_file()  # without a sweep to draw
    for searched in ({"train.epochs": 3}, {"train.feature_cache": "off"}):
        assert len(found(**searched)["lr_search"]["rates"]) > 0  # it may end early
    assert found(**{"train.epochs": 30})["lr_search"]["rates"] == []
