"""The trials of a comparison in their order, with made-up losses in place of trained runs."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest

from microplane.comparison.compare import _check_rows, _to_be_seen
from microplane.comparison.course import Course
from microplane.comparison.folder import PLAN
from microplane.comparison.output import _markdown_row
from microplane.comparison.plan import Plan, Trial
from microplane.comparison.result import _notes, command_of
from microplane.comparison.rows import source_of
from microplane.comparison.scoring import choose
from microplane.comparison.search import PARTS, Lengths
from microplane.comparison.statistics import Scores
from microplane.comparison.table import Answers, Measured, _costs, baseline_rows, scored
from microplane.comparison.trials import Outcome
from microplane.config.knobs import DataKnobs
from microplane.data.progress import Silent
from microplane.errors import DataError

STEPS = 40


def plan(**told):
    told = {"methods": ("lora",), "seeds": 2, "defaults": {"lora": 1e-3}, "task": None, "learning_curve": False} | told
    found = Plan(
        **dict.fromkeys(Plan.__dataclass_fields__) | told | {"rows": SimpleNamespace(shares={}), "steps": STEPS}
    )
    assert found.lengths == Lengths(STEPS, {})
    return found


class MadeUp:
    """Trials whose loss `loss(trial)` says; None of one that fails."""

    at_once = 1

    def __init__(self, loss):
        self.loss, self.ledger, self.noting = loss, {}, Lock()

    def is_done(self, trial):
        return False

    def run(self, trial):
        loss = self.loss(trial)
        train = {"validation_loss": loss, "steps": trial.steps, "seconds": float(trial.steps)}
        outcome = Outcome(trial, Path(), {"train": train, "seconds": float(trial.steps)}, None if loss else "too high")
        self.ledger[trial.name] = outcome
        return outcome


class Told(Silent):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def course(loss, **told) -> Course:
    return Course(MadeUp(loss), plan(**told), Told())


def test_the_rate_is_that_of_the_longer_trials():
    """Short ones like the high rate best, longer ones the lower."""
    made = course(lambda trial: 1 / trial.lr if trial.stage == "short" else trial.lr)
    made.search()
    made.finish()
    tried = [one.trial.lr for one in made.half["lora"]]
    assert len(tried) == 2
    assert {one.trial.lr for one in made.finals["lora"]} == {min(tried)}
    assert max(tried) == max(one.trial.lr for one in made.short["lora"])


def test_a_method_is_out_where_its_own_rate_fails_and_not_where_another_does():
    made = course(lambda trial: None if trial.lr > 2e-3 else 1 / trial.lr)
    made.search()
    made.finish()
    assert made.going == ["lora"]
    assert sum(not one.ok for one in made.short["lora"]) > 1
    out = course(lambda trial: None)
    out._search_short("lora")
    assert out.failed == {"lora": "too high"}
    assert len(out.short["lora"]) == 1


def test_parts_of_the_rows_are_learnt_at_the_rate_that_was_found():
    made = course(lambda trial: 1 / trial.lr, learning_curve=True)
    made.search()
    made.finish()
    made.learn("lora")
    [rate] = {one.trial.lr for one in made.finals["lora"]}
    assert rate != made.plan.defaults["lora"]
    assert {one.trial.lr for runs in made.parts.values() for one in runs} == {rate}
    assert {percent: len(runs) for percent, runs in made.parts.items()} == dict.fromkeys(PARTS, 2)


def test_what_is_left_is_shared_by_those_that_run_at_once():
    def eta(at_once):
        made = course(lambda trial: 1 / trial.lr)
        made.trials.at_once = at_once
        made._run(Trial("lora", "short", 1e-3, 10))
        return made.watch.lines[0].split("ETA ")[1]

    assert (eta(1), eta(3)) == ("3 min", "1 min")


def test_all_steps_count_the_curve_with_each_seed():
    both = plan(learning_curve=True, seeds=3)
    more = both.all_steps(STEPS) - plan(seeds=3).all_steps(STEPS)
    assert more == 3 * sum(both.lengths.part(percent) for percent in PARTS)


def test_rows_are_known_by_all_files_that_knobs_of_the_data_name(tmp_path):
    for name in ("rows", "held"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}\n')
    data, held = str(tmp_path / "rows.jsonl"), tmp_path / "held.jsonl"
    source = source_of(DataKnobs(train=data, test=str(held)))
    rows = SimpleNamespace(train=data, validation=data, test=data, parts={}, source=source)
    asked = SimpleNamespace(rows=rows, data=data, set={"data.test": str(held), "train.batch_size": 4})
    _check_rows(tmp_path, asked)
    held.write_text('{"text": "another"}\n')
    with pytest.raises(DataError, match="have changed since"):
        _check_rows(tmp_path, asked)


def test_other_machines_must_see_every_file_that_a_trial_reads(tmp_path):
    paths = {name: tmp_path / name for name in ("train", "model", "general")}
    for path in paths.values():
        path.touch()
    asked = SimpleNamespace(rows=SimpleNamespace(train=str(paths["train"])), model=str(paths["model"]))
    asked.general = str(paths["general"])
    assert set(_to_be_seen(tmp_path, asked)) == {tmp_path / PLAN, *paths.values()}
    asked.general, asked.model = None, "a-name-of-the-hub"
    assert set(_to_be_seen(tmp_path, asked)) == {tmp_path / PLAN, paths["train"]}


def test_tags_that_an_answer_lacks_are_wrong():
    assert choose(None, "tokens", []).of(["A", "A B C"], ["A O", "A B"]).tolist() == [0.5, 1.0]


def test_notes_say_what_is_left_out_and_only_that():
    found = SimpleNamespace(
        rows=SimpleNamespace(told="as given"),
        learning_curve=False,
        answer_rows=30,
        counts={"test": 30},
        task=None,
        seeds=3,
    )
    told = _notes(found, 0, {}, {"lora": [1, 2, 3]}, 1)
    assert len(told) == 1
    found.counts = {"test": 31}
    told = _notes(found, 0, {}, {"lora": [1, 2, 3], "full": [1, 2]}, 1)
    assert told[1].startswith("Answers were generated to 30 of 31 test rows")
    assert told[2] == "Of full 1 of 3 seeds failed; the ledger says why."


def test_the_command_has_the_metric_and_the_budget():
    found = SimpleNamespace(
        model="m", data="d", methods=("lora", "full"), seeds=2, metric="chrf", general=None, learning_curve=True,
        set={},
        budget=SimpleNamespace(kind="seconds", amount=90.0),
    )  # fmt: skip
    said = "microplane compare m d --methods lora,full --budget 90s --seeds 2 --metric chrf --learning-curve"
    assert command_of(found) == said


def test_a_cell_cannot_end_its_own():
    assert _markdown_row(["a|b", "c"]) == "| a\\|b | c |"


def test_memory_is_that_of_the_seed_that_took_most():
    def run(memory, seconds):
        told = {"peak_memory_bytes": memory, "seconds": seconds, "train_loss": 1.0, "validation_loss": 2.0}
        return SimpleNamespace(result={"train": told | {"steps": 5, "tokens": 50}})

    costs = _costs([run(10, 1.0), run(30, 2.0), run(20, 6.0)])
    assert (costs["peak_memory_bytes"], costs["seconds"], costs["gap"]) == (30, 3.0, 1.0)


def answers(before, after):
    said = zip(before, after, strict=True)
    return Answers([{"before": one, "after": two, "target": "x", "trivial": {"majority": "y"}} for one, two in said])


@pytest.mark.parametrize(("task", "share"), [("classification", 0.5), (None, 1.0)])
def test_an_untouched_head_is_another_with_each_seed_and_an_untouched_model_is_not(task, share):
    runs = [answers("xx", "xy"), answers("yy", "xx")]
    found = scored({"lora": runs}, "accuracy" if task else "exact_match", task)
    assert found.baselines["untouched model"].mean == share


@pytest.mark.parametrize(("lower", "best"), [(True, "low"), (False, "high")])
def test_the_best_baseline_comes_first(lower, best):
    both = {name: Scores(np.array([[value, value]]), False, False) for name, value in (("low", 0.2), ("high", 0.9))}
    found = Measured(SimpleNamespace(lower=lower), {}, {}, both, [0, 1], 0)
    assert baseline_rows(found)[0]["name"] == best
