"""What people type: other tools' names, options for what everybody sets, a method named after its knobs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from microplane.cli.options import assigned
from microplane.cli.problems import knob_for_option
from microplane.config.build import assemble, build, fields
from microplane.config.knobs import GenerateKnobs, RunKnobs
from microplane.config.other_names import OF_METHODS, OTHER_NAMES, REASONS
from microplane.errors import ConfigError
from microplane.methods import METHODS, make_method


@pytest.mark.parametrize("given", [
    ["method.rank=8", "method=dora"],
    ["method=dora", "method.rank=8"],
    ["method={rank: 8}", "method.name=dora"],
    ["method.rank=8", "method={name: dora}"],
])  # fmt: skip
def test_a_method_and_its_knobs_come_in_any_order(given):
    assert assemble(assignments=given).method == {"name": "dora", "rank": 8}


def test_spaces_around_a_name_and_its_value_do_not_count():
    assert assemble(assignments=[" train.lr = 0.01", "data.system= Be brief. "]).train.lr == 0.01


def test_a_section_is_added_to_what_was_set_of_it(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("method: lora\ntrain: {lr: 0.1, epochs: 2}\n")
    knobs = assemble(file, {"method.rank": 4}, ["train={epochs: 3, seed: 5}", "train.clip=0.5"])
    assert (knobs.train.lr, knobs.train.epochs, knobs.train.seed, knobs.train.clip) == (0.1, 3, 5, 0.5)
    assert knobs.method == {"name": "lora", "rank": 4}


def test_a_file_may_name_knobs_by_their_section_and_a_dot_but_not_twice(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "method: lora\nmethod.rank: 4\ntrain.lr: 0.1\ntrain: {epochs: 2}\ndata.fields: {text: a, label: b}\n"
    )
    knobs = assemble(file)
    assert (knobs.train.lr, knobs.train.epochs) == (0.1, 2)
    assert knobs.method == {"name": "lora", "rank": 4}
    assert knobs.data.fields == {"text": "a", "label": "b"}
    for text in ("train: {lr: 0.1}\ntrain.lr: 0.2\n", "train.lr: 0.2\ntrain: {lr: 0.1}\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"run\.yaml: train\.lr stands there twice"):
            assemble(file)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("learning_rate", "That is 'train.lr' here"),
        ("train.learning_rate", "That is 'train.lr' here"),
        ("train.num-train-epochs", "That is 'train.epochs' here"),
        ("bf16", "That is 'model.dtype=bfloat16' here"),
        ("cuda", "That is 'model.device=cuda' here"),
        ("num_processes", "microplane train --processes N"),
        ("eval.max_tokens", "That is 'eval.max_new_tokens' here"),
        ("eval.num_beams", "That is 'beams' of microplane generate"),
        ("lora.r", "That is 'method=lora' here"),
        ("data.text_column", "That is 'data.fields' here"),
        ("train.grad_accum", "That is 'train.micro_tokens' here"),
        ("save_total_limit", "The checkpoints that a run can go on from are kept"),
        ("rank", "That is 'method.rank' here"),
        ("alpha", "That is 'method.alpha' here"),
        ("train.dropout", "That is 'method.dropout' here"),
        ("wd", "That is 'train.weight_decay' here"),
        ("deepspeed", "That is 'train.shard' here"),
        ("use_dora", "That is 'method=dora' here"),
        ("evals_per_epoch", "That is 'train.eval_every' here"),
        ("report_to", "That is 'track' here"),
        ("train_on_inputs", "Answers alone are trained"),
        ("num_labels", "and the classes from the rows"),
        ("compile", "is taken without being asked for"),
        ("train.nonsense", "no such knob. All knobs"),
        ("eval.lr", "Did you mean 'train.lr'"),
        ("train.epocs", "Did you mean 'train.epochs'"),
    ],
)
def test_a_name_is_known_by_what_it_means(name, told):
    with pytest.raises(ConfigError) as error:
        assemble(given={name: 1})
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"), [("LoRA", "lora"), ("QLORA", "qlora"), ("head_only", "head-only"), ("Full", "full")]
)
def test_a_method_is_known_in_other_capitals(typed, meant):
    with pytest.raises(ConfigError, match=f"Did you mean '{meant}'"):
        make_method({"name": typed})


def test_of_a_method_only_its_own_knobs_are_told():
    with pytest.raises(ConfigError, match=r"That is 'method\.rank' here"):
        make_method({"name": "lora", "lora_r": 8})
    with pytest.raises(ConfigError) as error:
        make_method({"name": "full", "lora_r": 8})
    assert "method.rank" not in str(error.value)
    with pytest.raises(ConfigError) as error:
        make_method({"name": "full", "rank": 8})
    assert "That is" not in str(error.value)
    with pytest.raises(ConfigError, match=r"That is 'train\.lr' here"):
        make_method({"name": "lora", "learning_rate": 8})


def test_what_other_names_stand_for_is_there():
    known = {name for name, _ in fields(RunKnobs)} | {name for name, _ in fields(GenerateKnobs, "generate.")}
    known |= {f"method.{name}" for method in METHODS.values() for name in method.model_fields}
    for ours in OTHER_NAMES.values():
        name, _, value = ours.partition("=")
        assert name in known, ours
        if value:
            assemble(assignments=[ours])
    assert not OTHER_NAMES.keys() & REASONS.keys()
    assert {f"method.{name}" for name in OF_METHODS} <= known
    leaves = {name.rsplit(".", 1)[-1] for name in known}
    assert not set(OF_METHODS) & {name.rsplit(".", 1)[-1] for name, _ in fields(RunKnobs)}
    assert not leaves & (OTHER_NAMES.keys() | REASONS.keys())


def test_options_of_other_tools_say_the_knob():
    assert "--set train.lr=VALUE" in knob_for_option("--learning-rate")
    assert "--set model.dtype=nf4." in knob_for_option("--load-in-4bit")
    assert "--set train.clip=VALUE" in knob_for_option("--clip")
    assert "--set method.alpha=VALUE" in knob_for_option("--alpha")
    assert "--set model.device=VALUE" in knob_for_option("--device")
    assert knob_for_option("--nonsense") == ""
    assert "--set eval.max_new_tokens=VALUE" in knob_for_option("--max-tokens", "train")
    assert "--set max_new_tokens=VALUE" in knob_for_option("--max-tokens", "generate")
    assert "--set beams=VALUE" in knob_for_option("--beams", "generate")


def test_what_writing_has_is_told_as_generate_calls_it():
    with pytest.raises(ConfigError, match="That is 'max_new_tokens' here"):
        build(GenerateKnobs, {"max_tokens": 3})


def test_a_knob_that_is_given_twice_is_not_guessed():
    assert assigned({"train.lr": "1e-3"}, ["train.lr=0.001"]) == {"train.lr": 0.001}
    with pytest.raises(ConfigError, match=r"train\.lr is given twice: as 0\.001, and with --set train\.lr=0\.1"):
        assigned({"train.lr": "1e-3"}, ["train.lr=1e-1"])


def test_lists_keep_words_whole_where_the_width_is_known():
    command = [sys.executable, "-m", "microplane", "knobs"]
    for columns in (80, 60):
        shown = subprocess.run(
            command, env=os.environ | {"COLUMNS": str(columns)}, capture_output=True, text=True, check=True
        ).stdout
        whole = subprocess.run(
            command,
            env={k: v for k, v in os.environ.items() if k != "COLUMNS"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.split() == whole.split()
        assert all(len(line) <= columns or " " not in line.strip() for line in shown.splitlines())
