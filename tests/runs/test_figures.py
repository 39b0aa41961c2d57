"""What figures of a run are of, and under what they are kept for other runs; without a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from microplane.config.knobs import DataKnobs, EvalKnobs, RunKnobs, TrainKnobs
from microplane.evaluation.trivial import Trivial
from microplane.nn.number_format import NumberFormat
from microplane.runs import baseline, check, evaluate, train
from microplane.runs.result import IMPROVED, course_checks, moved_check, train_section
from microplane.training.loop import Outcome
from microplane.training.step import Totals


def named(**values: Any) -> Any:
    return SimpleNamespace(**values)


def head(labels=("a", "b"), pooling="cls") -> Any:
    return named(config=named(task="classification", labels=labels, pooling=pooling))


USUAL: dict[str, Any] = {
    "rows": "rows",
    "answered": (0, 1),
    "data": DataKnobs(),
    "eval": EvalKnobs(),
    "train": TrainKnobs(),
    "tokenizer": "tokenizer",
    "digest": "weights",
    "head": None,
    "form": NumberFormat(torch.float32),
}


def place(**changes: Any) -> str:
    """Where the figures of an untouched model are kept."""
    given = USUAL | changes
    config = named(data=given["data"], eval=given["eval"], train=given["train"])
    prepared = named(
        config=config,
        held_out=named(fingerprint=given["rows"]),
        answer_rows=given["answered"],
        tokenizer=named(fingerprint=given["tokenizer"]),
        form=given["form"],
    )
    base = named(digest=given["digest"], model=named(task_head=given["head"]))
    return baseline._place(baseline._rows(prepared), prepared, base).name


def test_figures_of_the_untouched_model_are_kept_by_all_that_decides_them():
    changes = [
        {"rows": "others"},
        {"answered": (0, 2)},
        {"data": DataKnobs(template="plain")},
        {"data": DataKnobs(system="Be brief.")},
        {"eval": EvalKnobs(max_new_tokens=5)},
        {"eval": EvalKnobs(batch_tokens=64)},
        {"tokenizer": "other"},
        {"digest": "other"},
        {"head": head()},
        {"head": head(("b", "a"))},
        {"head": head(pooling="mean")},
        {"head": head(), "train": TrainKnobs(seed=1)},
        {"form": NumberFormat(torch.bfloat16)},
        {"form": NumberFormat(torch.float32, "int8")},
    ]
    assert len({place(), *(place(**change) for change in changes)}) == 1 + len(changes)
    same = [{"train": TrainKnobs(seed=1)}, {"eval": EvalKnobs(general="default", shots=3)}]
    assert {place(**change) for change in same} == {place()}


def outcome(**changes: Any) -> Outcome:
    usual: dict[str, Any] = {
        "totals": Totals(step=10, tokens=500, trained_tokens=50),
        "steps_planned": 20,
        "best_step": 5,
        "validation_loss": 0.5,
        "train_loss": 0.4,
        "stopped_early": False,
        "interrupted": False,
        "best": {},
        "verdict": None,
        "retreats": [],
        "moved": 7,
        "tensors": 7,
        "decisions": [],
    }
    return Outcome(**usual | changes)


def test_passes_and_speeds_of_a_run(tmp_path):
    speed = tmp_path / "speed.jsonl"
    rates = [(1.0, 10), (2.0, 20), (9.0, 1000)]
    lines = [
        f'{{"seconds": {seconds}, "tokens_per_second": {rate}, "trained_tokens_per_second": 1}}\n'
        for seconds, rate in rates
    ]
    speed.write_text("".join(lines))
    found = train_section(outcome(), 250, speed, 1, None)
    assert (found.epochs, found.seconds, found.tokens_per_second) == (2.0, 12.0, 20)


def test_a_run_that_gained_nothing_or_left_tensors_behind_fails_its_check():
    (check,) = course_checks(outcome(best_step=0))
    assert (check.name, check.passed) == (IMPROVED, False)
    assert course_checks(outcome())[0].passed
    assert [moved_check(outcome(moved=moved)).passed for moved in (6, 7, None)] == [False, True, None]


@pytest.mark.parametrize("test", [None, "rows"])
def test_what_was_measured_is_called_by_its_rows_and_failures_are_shown_first(tmp_path, test):
    held_out = named(where=lambda row: f"rows:{row}")
    prepared = named(answer_rows=(4, 7), held_out=held_out, splits=named(test=test), objective=named(needs_head=False))
    before = {"prompts": ["p", "q"], "targets": ["x", "y"], "texts": ["-", "-"], "scores": {"exact_match": 0.0}}
    after = {"texts": ["x", "z"], "scores": {"exact_match": 0.5}, "by_class": {}}
    trivial = {"commonest": Trivial({"exact_match": 0.75}, ["x", "x"])}
    metrics, samples = train._compared(prepared, before, after, trivial, tmp_path)
    assert metrics.split == ("test" if test else "validation")
    assert metrics.rows == 2
    assert (
        metrics.beaten == "commonest does better on the same rows: exact_match 75.0%, the tuned model exact_match 50.0%"
    )
    assert [(one.where, one.after, one.target) for one in samples] == [("rows:7", "z", "y"), ("rows:4", "x", "x")]


def test_a_run_is_measured_with_the_system_prompt_that_is_asked_for_and_else_its_own():
    loaded = named(method=named(), template="chat", system="Its own.", about={}, model=named(task_head=None))
    assert evaluate._as_trained(DataKnobs(), loaded).system == "Its own."
    assert evaluate._as_trained(DataKnobs(system="Another."), loaded).system == "Another."
    assert evaluate._as_trained(DataKnobs(system=""), loaded).system == ""


def test_the_time_of_a_run_is_that_of_all_its_tokens():
    rows = named(train=named(lengths=np.array([10, 30])))

    def seconds(**knobs: Any) -> float:
        prepared = named(config=RunKnobs(train=TrainKnobs(**knobs)), splits=rows)
        return check._seconds(prepared, named(tokens_per_second=20))

    assert seconds() == 2
    assert seconds(epochs=3) == 6
    assert seconds(steps=5, batch_size=4) == 5 * 4 * 20 / 20
    assert seconds(steps=5, batch_tokens=64) == 16
