"""What figures of a run are of, and under what they are kept for other runs; without a run."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from microplane.config.build import assemble
from microplane.config.knobs import DataKnobs, EvalKnobs, RunKnobs, TrainKnobs
from microplane.data.batch_plan import BatchPlan
from microplane.errors import ConfigError, DataError
from microplane.evaluation.trivial import Trivial
from microplane.nn.number_format import NumberFormat
from microplane.runs import asked, baseline, check, evaluate, train
from microplane.runs.fit import KEPT_PASSES, _say_passes
from microplane.runs.general import General
from microplane.runs.result import (
    IMPROVED,
    GeneralSection,
    course_checks,
    earlier_seconds,
    moved_check,
    train_section,
)
from microplane.training.loop import Outcome
from microplane.training.step import Totals
from tests.tiny import copy_task


def named(**values: Any) -> Any:
    return SimpleNamespace(**values)


def head(labels=("a", "b"), pooling="cls") -> Any:
    return named(config=named(task="classification", labels=labels, pooling=pooling, form=None))


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


@pytest.mark.parametrize(
    ("rows", "epochs", "told"),
    [
        (3200, None, []),
        (1080, None, ["passes    3 over the 1,080 rows, 405 steps: few rows are read more than once"]),
        (40, KEPT_PASSES, ["passes    30 over the 40 rows, 150 steps: what is kept of rows is read more than once"]),
    ],
)
def test_it_is_said_how_often_rows_are_read_where_nobody_said_it(rows, epochs, told):
    said: list[str] = []
    knobs = TrainKnobs(epochs=epochs)
    _say_passes(BatchPlan.of(copy_task(rows).lengths, knobs), knobs, named(say=said.append))
    assert [line.partition(" (train.epochs)")[0] for line in said] == told


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


@pytest.mark.parametrize(
    ("name", "own", "taken"),
    [
        ("max_length", 77, 77), ("max_target_length", 7, 7), ("long_rows", "windows", "windows"),
        ("fields", {"text": "review"}, {"text": "review"}), ("no_label", ["?"], ("?",)),
        ("objective", "span_corruption", "span_corruption"), ("format", "text", "text"), ("unicode", "nfd", "nfd"),
        ("segment", "vi", "vi"), ("date", "1 January 2026", "1 January 2026"),
        ("source_language", "eng_Latn", "eng_Latn"), ("target_language", "fra_Latn", "fra_Latn"),
    ],
)  # fmt: skip
def test_a_run_is_measured_by_its_own_knobs_of_the_data_where_nothing_else_is_asked(name, own, taken):
    loaded = named(method=named(), template="chat", system=None, about={name: own}, model=named(task_head=None))
    assert getattr(evaluate._as_trained(DataKnobs(), loaded), name) == taken
    assert name in asked.TAKEN_OVER


def test_rows_of_two_texts_are_no_measure_of_a_run_of_one():
    def summary(task, second_texts):
        return named(
            task=task, second_texts=second_texts, files={"train": ["x.csv"]}, format="classification (a + b -> c)"
        )

    run = named(about={"pairs": False})
    with pytest.raises(
        DataError, match=r"x\.csv is read as classification \(a \+ b -> c\), and the run was trained on rows of"
    ):
        evaluate._check_texts(run, summary("classification", 5))
    for loaded, two in ((run, 0), (named(about={"pairs": True}), 5), (named(about={}), 5), (named(about=None), 5)):
        evaluate._check_texts(loaded, summary("classification", two))
    evaluate._check_texts(run, summary(None, 5))


def test_a_default_that_is_asked_for_is_asked_for():
    """A greatest length, of a run whose rows were cut earlier."""
    loaded = named(method=named(), template="chat", system=None, about={"max_length": 77}, model=named(task_head=None))
    usual = DataKnobs().max_length
    assert evaluate._as_trained(DataKnobs(max_length=usual), loaded).max_length == usual
    assert assemble(given={"data.max_length": usual}).data.model_fields_set == {"max_length"}


def test_what_was_forgotten_is_what_the_tuned_model_loses_more():
    text = General("default", named(trained_counts=np.array([3, 4])), named(name="next_token"))
    found = GeneralSection.of(text, 2.0, 3.5)
    assert (found.before, found.after, found.difference, found.tokens) == (2.0, 3.5, 1.5, 7)


def test_the_sittings_before_count(tmp_path):
    assert earlier_seconds(tmp_path) == 0.0
    (tmp_path / "result.json").write_text('{"seconds": 5.5}')
    assert earlier_seconds(tmp_path) == 5.5


def test_answers_are_written_with_their_targets(tmp_path):
    measured = {"prompts": ["p", "q"], "targets": ["t", "u"], "texts": ["a", "b"], "scores": {}, "by_class": {}}
    evaluate.write_answers(tmp_path / "out.jsonl", measured)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [{"prompt": "p", "target": "t", "answer": "a"}, {"prompt": "q", "target": "u", "answer": "b"}]


def test_answers_are_not_written_over_the_rows_that_they_are_of(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    knobs = RunKnobs(data=DataKnobs(train=str(tmp_path / "rows.jsonl")))
    for name, told in (("rows.jsonl", "would overwrite"), ("link.jsonl", "would overwrite"), (".", "is a folder")):
        with pytest.raises(ConfigError, match=told):
            evaluate.check_out(tmp_path / name, knobs)
    evaluate.check_out(tmp_path / "other.jsonl", knobs)


ANSWERED = b'{"prompt": "p", "target": "t", "answer": "a"}\n'
OF_A_SUITE = b'{"task": "arc_easy", "row": 1, "asked": [], "said": [], "target": "a", "acc": 1.0}\n'


@pytest.mark.parametrize("there", [b"", ANSWERED, OF_A_SUITE])
def test_answers_of_before_are_written_over(tmp_path, there):
    (tmp_path / "out.jsonl").write_bytes(there)
    evaluate.check_out(tmp_path / "out.jsonl", RunKnobs())


@pytest.mark.parametrize(
    "there",
    [b'{"prompt": "p", "completion": "c"}\n', b"name: x\n", b"text,label\n", b"[1]\n", b"{" * 9000, b"\x80\x81"],
)
def test_other_files_are_not_written_over_by_answers(tmp_path, there):
    (tmp_path / "out.jsonl").write_bytes(there)
    with pytest.raises(ConfigError, match="holds no answers of before"):
        evaluate.check_out(tmp_path / "out.jsonl", RunKnobs())


def test_the_time_of_a_run_is_that_of_all_its_tokens():
    lengths = np.array([10, 30] * 4)  # 160 tokens

    def seconds(**given: Any) -> float:
        knobs = TrainKnobs(**given)
        plan, rows = BatchPlan.of(lengths, knobs), named(train=named(lengths=lengths))
        prepared = named(config=RunKnobs(train=knobs), splits=rows, batch_plan=plan)
        return check._seconds(prepared, named(tokens_per_second=20))

    assert seconds() == 3 * 160 / 20
    assert seconds(epochs=2) == 2 * 160 / 20
    assert seconds(steps=5, batch_size=4) == 2.5 * 160 / 20
    assert seconds(steps=5, batch_tokens=40) == 160 / 20, "the short ones in one step, the long ones alone"
