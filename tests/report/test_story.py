"""What the page tells, from records that are written down here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from microplane.report.choice import choice
from microplane.report.curves import sweep
from microplane.report.read import LISTS, SECTIONS, RunRecord, read_run
from microplane.report.story import (
    commands,
    compared,
    confusion,
    curve_table,
    outcome,
    samples,
    trained_share,
    warnings,
)
from microplane.report.words import duration, significant


def record(validation: list[dict[str, Any]] | None = None, **sections: Any) -> RunRecord:
    empty: dict[str, Any] = {name: {} for name in SECTIONS} | {name: [] for name in LISTS}
    return RunRecord(Path("run"), {"status": "success"} | empty | sections, [], validation or [], [], "")


def test_how_near_the_task_was_is_told_with_its_own_answers_first():
    found = {"chosen": "lora", "candidates": [], "near": {"loss": 1.25, "shuffled": 2.5}}
    assert [one.value for one in choice(record(choice=found)).near] == [1.25, 2.5]


def test_a_check_that_was_not_made_has_not_failed():
    checks = [{"name": "one", "passed": None}, {"name": "two", "passed": False}, {"name": "three", "passed": True}]
    assert warnings(record(checks=checks)) == ["1 check failed: two."]


def test_rows_that_were_given_their_own_class_are_right():
    classes = {name: {"precision": 1.0} for name in "ab"}
    by_class = {"classes": classes, "confusion": [[3, 1], [0, 4]]}
    told = [
        [(cell.count, cell.share, cell.right) for cell in row]
        for _, row in confusion(record(metrics={"by_class": by_class}))
    ]
    assert told == [[(3, 0.75, True), (1, 0.25, False)], [(0, 0.0, False), (4, 1.0, True)]]


def test_the_time_that_is_told_is_that_of_the_whole_command():
    measured = {"after": {"loss": 1.0}, "before": {"loss": 2.0}}
    assert " in 1 min 5 s." in outcome(record(metrics=measured, train={"seconds": 9.0}, seconds=65.0))
    assert " in 9 s." in outcome(record(metrics=measured, train={"seconds": 9.0}))


def test_what_differs_from_the_target_is_marked_where_most_is_alike():
    assert compared("turn on the light", "turn on the lamp") == [("turn on the ", False), ("lamp", True)]
    assert compared("turn on the light", "I do not know that") == [("I do not know that", False)]


@pytest.mark.parametrize(("trained", "share"), [(123, "0.12%"), (36_000, "36%"), (3_600, "3.6%"), (None, "")])
def test_the_share_that_trains_has_two_digits(trained, share):
    assert trained_share(record(method={"trainable_parameters": trained, "total_parameters": 100_000})) == share


@pytest.mark.parametrize(
    ("status", "first"),
    [("success", "Use it"), ("stopped", "Use it"), ("failed", "Run it again"), ("unfinished", "Go on, if")],
)
def test_what_to_do_next_follows_from_how_it_ended(status, first):
    told = [what for what, _ in commands(record(status=status))]
    assert told[0].startswith(first)
    assert ("Go on where it stopped" in told) == (status == "stopped")


def test_the_best_step_stands_in_the_table_however_many_there_are():
    lines = [{"step": step, "validation_loss": 1.0, "best": step == 7} for step in range(1000)]
    rows = curve_table(record(lines, train={"best_step": 7}))
    assert [row["step"] for row in rows if row["best"]] == [7]
    assert len(rows) < 105


def test_one_rate_that_diverges_does_not_flatten_a_sweep():
    found = {"rates": [1e-4, 1e-3, 1e-2], "gains": [0.5, 1.0, -1e6], "chosen": 1e-3}
    drawn = sweep(record(lr_search=found))
    assert drawn.nothing == 20  # half way between a gain of 1 and a loss of 1
    assert drawn.points.split()[0] == "0.0,10.0"


def test_white_space_at_the_ends_is_no_difference():
    rows = [{"prompt": "p", "target": "yes", "before": "no", "after": " yes\n"}]
    (found,) = samples(record(samples=rows))
    assert [output.verdict for output in found.outputs] == ["", "differs", "equal"]


def test_a_run_that_is_going_counts_what_it_has_timed(tmp_path):
    lines = [{"step": step, "loss": 1.0, "tokens": 100, "trained_tokens": 10} for step in (1, 2, 3)]
    lines += [{"step": 1, "validation_loss": 3.0, "best": True}, {"step": 3, "validation_loss": 2.0, "best": True}]
    speed = [{"step": step, "seconds": 2.0, "memory_bytes": memory} for step, memory in ((1, 5), (2, 9), (2, 9))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "speed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in speed))
    told = read_run(tmp_path).result["train"]
    assert (told["tokens"], told["tokens_per_second"], told["trained_tokens_per_second"]) == (300, 50, 5)
    assert (told["peak_memory_bytes"], told["best_step"], told["validation_loss"]) == (9, 3, 2.0)


@pytest.mark.parametrize(("value", "said"), [(-0.34121, "-0.3412"), (0.34121, "0.3412"), (-1e-5, "-1e-5")])
def test_numbers_below_zero_are_said_as_those_above(value, said):
    assert significant(value) == said


@pytest.mark.parametrize(("seconds", "said"), [(7540, "2 h 6 min"), (7200, "2 h"), (7169, "1 h 59 min")])
def test_hours_are_rounded_to_the_minute(seconds, said):
    assert duration(seconds) == said
