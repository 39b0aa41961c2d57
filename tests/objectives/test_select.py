"""Which objective it is: by family, head, knobs and format; and what does not apply is refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest

import microplane
from microplane.config.build import choices
from microplane.config.knobs import DataKnobs, ModelKnobs
from microplane.errors import ConfigError
from microplane.evaluation import label_metrics
from microplane.models.configs.head import POOLINGS, PROBLEMS, TASKS
from microplane.models.heads import add_head
from microplane.objectives import HEAD_OBJECTIVES, OBJECTIVES, select
from microplane.objectives.select import NEXT_TOKEN, WRITES, LabelCandidates, TextCandidates, candidates, objective_of
from tests.runs.test_seq2seq import SET, pair_folder, shout
from tests.tiny import save_tiny_folder, tiny, tiny_encoder, tiny_pairs


def headed(model, task="classification"):
    add_head(model, task, ["a", "b"])
    return model


@pytest.mark.parametrize(
    ("model", "knobs", "format_name", "name"),
    [
        (tiny, {}, "prompt/completion", "next_token"),
        (tiny, {}, "text", "next_token"),
        (tiny, {"task": "answers"}, "text/label", "next_token"),
        (tiny, {"task": "classification"}, "classification", "classification"),
        (tiny_pairs, {}, "inputs/targets", "seq2seq"),
        (tiny_pairs, {}, "text", "span_corruption"),
        (tiny_pairs, {"objective": "span_corruption"}, "text", "span_corruption"),
        (tiny_pairs, {"objective": "prefix_lm"}, "text", "prefix_lm"),
        (tiny_pairs, {"task": "regression"}, "regression", "regression"),
        (tiny_encoder, {}, "multilabel", "multilabel"),
        (tiny_encoder, {}, "tokens", "tokens"),
        (lambda: headed(tiny()), {}, "classification", "classification"),
        (lambda: headed(tiny()), {"task": "answers"}, "text", "next_token"),
        (lambda: headed(tiny_pairs(), "multilabel"), {}, "multilabel", "multilabel"),
    ],
)
def test_family_head_knobs_and_format_decide(model, knobs, format_name, name):
    chosen = candidates(model(), DataKnobs(**knobs)).objective(format_name)
    assert chosen.name == name
    assert chosen.needs_head == (name in TASKS)
    assert type(chosen) is type(OBJECTIVES[name](model()))


def test_a_model_in_use_answers_by_its_head_or_in_text():
    assert objective_of(tiny()).name == "next_token"
    assert objective_of(tiny_pairs()).name == "seq2seq"
    assert objective_of(headed(tiny_encoder(), "tokens")).name == "tokens"


def test_the_decoder_of_a_pair_begins_as_its_model_says():
    model = tiny_pairs("marian")
    assert objective_of(model).decoder_start == model.config.decoder_start


@pytest.mark.parametrize(
    ("model", "knobs", "reason"),
    [
        (tiny, {"objective": "prefix_lm"}, "data.objective = prefix_lm .* learns the next token of plain text"),
        (tiny_encoder, {"objective": "span_corruption"}, "data.objective = span_corruption .* rows with labels"),
        (tiny_pairs, {"objective": "prefix_lm", "task": "tokens"}, "data.objective = prefix_lm .* rows with labels"),
        (tiny_encoder, {"task": "answers"}, "data.task = answers: .* reads and cannot write"),
    ],
)
def test_what_does_not_apply_to_the_model_is_refused(model, knobs, reason):
    with pytest.raises(ConfigError, match=reason):
        candidates(model(), DataKnobs(**knobs))


def test_an_objective_of_plain_text_is_refused_on_pairs():
    choice = candidates(tiny_pairs(), DataKnobs(objective="prefix_lm"))
    with pytest.raises(ConfigError, match=r"data.objective = prefix_lm says .* these rows are inputs/targets"):
        choice.objective("inputs/targets")


def test_a_run_refuses_it_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    sets = SET | {"runs": str(tmp_path / "runs"), "data.objective": "span_corruption"}
    with pytest.raises(ConfigError, match="these rows are inputs/targets, which are pairs already"):
        microplane.train(str(pair_folder(tmp_path / "model")), str(shout(tmp_path)), set=sets)
    assert not list((tmp_path / "cache").rglob("*.ids"))  # nothing was tokenised either
    with pytest.raises(ConfigError, match="learns the next token of plain text"):
        microplane.train(str(save_tiny_folder(tmp_path / "decoder")), str(shout(tmp_path)), set=sets)


def test_answers_is_no_objective_any_more():
    with pytest.raises(ValueError, match="span_corruption"):
        DataKnobs(objective="answers")


# Names are declared once; who must repeat them repeats them right


def test_tasks_are_the_same_everywhere():
    knob = get_args(DataKnobs.model_fields["task"].annotation)
    assert knob == ("auto", "answers", *TASKS)
    assert tuple(HEAD_OBJECTIVES) == TASKS == tuple(label_metrics.TASKS)
    assert set(PROBLEMS) < set(TASKS)
    assert {name: objective.name for name, objective in HEAD_OBJECTIVES.items()} == {name: name for name in TASKS}


def test_the_knobs_name_objectives_and_poolings_that_there_are():
    asked = choices(DataKnobs.model_fields["objective"])
    assert set(asked) - {"auto"} <= set(OBJECTIVES)
    assert {name for names in WRITES.values() for name in names} <= set(OBJECTIVES)
    assert get_args(ModelKnobs.model_fields["pooling"].annotation) == ("auto", *POOLINGS)


# The seed


def texts(folder):
    lines = [json.dumps({"text": f"the quick brown fox number {n} jumps over {n * n} dogs"}) for n in range(30)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    return folder / "text.jsonl"


def test_each_seed_of_a_run_trains_on_masks_of_its_own_and_is_measured_on_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    drawn = {}
    from microplane.runs import prepare as runs

    real = runs.load_splits

    def noting(*given, **named):
        splits = real(*given, **named)
        drawn[len(drawn)] = [[rows[row][0].tolist() for row in range(3)] for rows in (splits.train, splits.validation)]
        return splits

    monkeypatch.setattr(runs, "load_splits", noting)
    model, data = pair_folder(tmp_path / "model"), texts(tmp_path)
    sets = SET | {"runs": str(tmp_path / "runs"), "data.max_length": 40, "train.steps": 1}
    for seed in (0, 1, 2):
        microplane.train(str(model), str(data), set=sets | {"train.seed": seed})
    trained, measured = zip(*drawn.values(), strict=True)
    assert trained[0] != trained[1] != trained[2] != trained[0]
    assert measured[0] == measured[1] == measured[2]


def test_rows_are_kept_by_the_task_and_the_packages_that_make_them():
    """Else rows of another task, or of a package's other version, would be taken for them."""
    plain = TextCandidates(NEXT_TOKEN.conversations, NEXT_TOKEN.plain_text)
    keys = [plain.key(), replace(plain, packages=("mine 1",)).key(), replace(plain, packages=("mine 2",)).key()]
    keys += [LabelCandidates(task).key() for task in (None, "classification", "multilabel")]
    assert len({json.dumps(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("knob", ["format", "objective"])
def test_a_package_that_reads_or_renders_rows_counts_with_its_version(knob, monkeypatch):
    class Registered(dict):
        def version_of(self, name):
            return f"{name} 1.2"

    monkeypatch.setattr(select, "FORMATS", Registered(mine_format=None))
    monkeypatch.setattr(select, "OBJECTIVES", Registered(mine_objective=None))
    knobs = DataKnobs.model_construct(format="auto", objective="auto")
    assert select._packages(knobs) == ()
    knobs = DataKnobs.model_construct(**{"format": "auto", "objective": "auto"} | {knob: f"mine_{knob}"})
    assert select._packages(knobs) == (f"mine_{knob} 1.2",)


def test_a_head_that_is_there_says_its_task_and_classes_and_the_knobs_what_is_no_label():
    headed_one = headed(tiny_encoder(), "multilabel")
    found = candidates(headed_one, DataKnobs(no_label=("none", "?")))
    assert (found.task, found.classes, found.no_label) == ("multilabel", ("a", "b"), ("none", "?"))
    assert candidates(headed_one).no_label == ("auto",)
    assert candidates(headed_one, DataKnobs(task="tokens")).task == "tokens", "what is asked for comes first"
