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
from microplane.errors import ConfigError, TrainingError
from microplane.evaluation.nearness import Paired, ignores_inputs, nearness
from microplane.methods import METHODS, make_method
from microplane.objectives.next_token import NextToken
from microplane.report.page import write_report
from microplane.runs import choice as rules
from microplane.runs import method_search
from microplane.runs.choice import (
    Candidate,
    Choice,
    decide_method,
    decide_rank,
    ladder,
    method_share,
    raised_enough,
    trial_share,
)
from microplane.runs.method_search import left_open, refuse, stand_in
from microplane.training import loop
from microplane.training.log import read_lines
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


def method_choice(*candidates: Candidate, start: str = "lora", share: float = 0.1) -> Choice:
    found = Choice("method.name", 400, share, candidates=list(candidates), start=start, rule="by its rows")
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


def test_of_whole_runs_the_lowest_is_taken():
    """It is trained already, and nothing speaks for another."""
    close = method_choice(candidate("lora", 1.0), candidate("full", 0.99, noise=1.0), share=1.0)
    assert close.chosen == "full"
    assert close.whole
    assert "of 2 whole runs" in close.why
    assert "the rule alone: lora, as by its rows" in close.why


@pytest.mark.parametrize(
    ("steps", "count", "share", "searched"),
    [(20, 3, 1, 0.5), (300, 3, 1, 0.5), (600, 2, 0.5, 0.5), (1200, 3, 0.25, 0.25), (9000, 2, 0.125, 0.125)],
)
def test_a_short_run_is_tried_whole_and_a_long_one_for_a_part(steps, count, share, searched):
    assert method_share(steps, count, searched=False) == share
    assert method_share(steps, count, searched=True) == searched  # no trial can be that run


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


def test_a_run_whose_method_is_chosen(tmp_path, monkeypatch):
    """It is the run that was given the method, to the bit; what decided stands in the result, run.yaml and the page."""
    monkeypatch.setattr(rules, "LONG", 9)
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
    assert came_to(run) == came_to(alone(run, model, asked(60), sets))


def alone(run: microplane.Run, model: Path, rows: list[dict[str, str]], sets: dict) -> microplane.Run:
    """The same run with its method named."""
    given = {f"method.{name}": value for name, value in run.result["run"]["method"].items() if name != "name"}
    return microplane.train(model, rows, method=run.result["choice"]["chosen"], set=sets | given)


def came_to(run: microplane.Run) -> dict[str, bytes]:
    return {name: (run.folder / name).read_bytes() for name in ("metrics.jsonl", "adapter/adapter_model.safetensors")}


@pytest.mark.parametrize("kind", ["answers", "labels"])
def test_a_short_run_is_the_best_of_its_trials(tmp_path, kind, monkeypatch):
    """Nothing is trained twice, and all that a run is known by is as if the method had been named."""
    place, sets = tmp_path / "model", SETS | {"runs": str(tmp_path / "runs"), "train.epochs": 2, "train.steps": None}
    answers = kind == "answers"
    model = save_tiny_folder(place, **SHALLOW) if answers else encoder_folder(place, **SHALLOW)
    rows = asked(60) if answers else reviews()
    said, records, step, steps = list[str](), list[dict](), loop.train_step, list[int]()
    monkeypatch.setattr(loop, "train_step", lambda state, totals: steps.append(1) or step(state, totals))
    run = microplane.train(model, rows, method="auto", set=sets, watch=Heard(said), callback=records.append)
    found = run.result["choice"]
    assert len({one["steps"] for one in found["candidates"]}) == 1
    assert found["steps"] == 3 * found["run_steps"] == len(steps)
    named = alone(run, model, rows, sets)
    losses = {one["name"]: one["loss"] for one in found["candidates"]}
    assert losses[found["chosen"]] == min(losses.values()) == run.result["train"]["validation_loss"]
    assert came_to(run) == came_to(named)
    assert run.metrics == named.metrics
    assert run.result["method"] == named.result["method"]
    own, other = run.result["train"], named.result["train"]
    timed = {"seconds", "tokens_per_second", "trained_tokens_per_second", "peak_memory_bytes", "feature_cache"}
    assert {key: own[key] for key in own.keys() - timed} == {key: other[key] for key in other.keys() - timed}
    assert own["seconds"] > 0
    assert own["peak_memory_bytes"] >= next(
        one["held_bytes"] for one in found["candidates"] if one["name"] == found["chosen"]
    )
    assert [one["step"] for one in records] == [one["step"] for one in read_lines(run.folder / "metrics.jsonl")]
    assert all(one["seconds"] > 0 for one in records if "loss" in one)
    assert not any("nothing is left" in line for line in said)
    assert not (run.folder / "trials").exists()
    assert "nothing was trained twice" in write_report(run.folder).read_text()


def test_killed_while_the_best_trial_becomes_the_run(tmp_path, monkeypatch):
    model, sets = save_tiny_folder(tmp_path / "model", **SHALLOW), SETS | {"runs": str(tmp_path / "runs")}
    whole = microplane.train(model, asked(60), method="auto", set=sets | {"name": "whole"})

    def killed(trial: Path, folder: Path) -> None:
        first = min(trial.iterdir())
        first.rename(folder / first.name)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(method_search, "_move", killed)
        with pytest.raises(Killed):
            microplane.train(model, asked(60), method="auto", set=sets | {"name": "cut"})
    with monkeypatch.context() as patched:
        patched.setattr(method_search, "fit", lambda *how, **knobs: pytest.fail("tried again"))
        resumed = microplane.resume(tmp_path / "runs" / "cut")
    assert came_to(resumed) == came_to(whole)
    assert strip(resumed.result["choice"]) == strip(whole.result["choice"])
    assert resumed.metrics == whole.metrics


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


def test_where_every_trial_fails_each_says_why(tmp_path, monkeypatch):
    encoder, sets = encoder_folder(tmp_path / "model", **SHALLOW), SETS | {"runs": str(tmp_path / "runs")}

    def fails(prepared, *how, **knobs):
        raise TrainingError(f"no {prepared.method.name} today")

    monkeypatch.setattr(method_search, "fit", fails)
    with pytest.raises(ConfigError, match="lora: no lora today; full: no full today; head-only: no head-only today"):
        microplane.train(encoder, reviews(), method="auto", set=sets)


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
        one.pop("held_bytes", None)
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


def test_a_run_too_short_for_trials_of_ranks_takes_the_methods_own(tmp_path):
    model = save_tiny_folder(tmp_path / "model", **SHALLOW)
    sets = SETS | {"runs": str(tmp_path / "runs"), "train.steps": 40, "method.rank": "auto"}
    run = microplane.train(model, asked(60), method="dora", set=sets)
    found = run.result["choice"]
    assert found["chosen"] == f"rank {METHODS['dora'].model_fields['rank'].default}"
    assert "too short for trials, which need" in found["why"]
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
