"""The whole job on a tiny model: names in, a folder out."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors
import torch
import transformers
import yaml
from typer.testing import CliRunner

import microplane
from microplane.cli.app import app
from microplane.config.build import build, read_yaml
from microplane.config.knobs import RunKnobs
from microplane.errors import ConfigError
from microplane.runs.train import train
from tests.tiny import save_tiny_folder

SETS = {
    "train.epochs": 6,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.lr": 1e-2,
    "eval.rows": 6,
    "eval.max_new_tokens": 4,
    "model.dtype": "float32",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save_tiny_folder(folder / "model")
    rows = [{"prompt": f"say {'abcdefg'[i % 7] * 2}", "completion": "abcdefg"[i % 7]} for i in range(7)] * 8
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def done(place):
    sets = SETS | {"runs": str(place / "runs")}
    return microplane.train(str(place / "model"), str(place / "rows.jsonl"), set=sets)


def test_the_folder_holds_what_was_promised(done):
    there = {path.name for path in done.folder.iterdir()}
    assert there == {
        "run.yaml", "metrics.jsonl", "speed.jsonl", "result.json", "answers.jsonl", "report.html", "adapter", "resume",
    }  # fmt: skip
    assert done.folder.name == "model-lora-rows"
    assert json.loads((done.folder / "result.json").read_text())["status"] == "success"


def test_every_measured_row_has_its_answers(done):
    lines = [json.loads(line) for line in (done.folder / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == done.metrics["rows"] == len({line["where"] for line in lines})
    for side in ("before", "after"):
        right = sum(line[side].strip() == line["target"].strip() for line in lines) / len(lines)
        assert right == done.metrics[side].get("exact_match", done.metrics[side].get("accuracy"))
    names = {name for line in lines for name in line["trivial"]}
    assert names == set(done.metrics["trivial"]) == {"commonest answer", "nearest training row"}
    assert 0 < done.result["measuring_seconds"] < done.result["seconds"]


def test_it_got_better_and_passed_its_own_checks(done):
    assert done.metrics["after"]["loss"] < 0.7 * done.metrics["before"]["loss"]
    assert [check["name"] for check in done.result["checks"]][:4] == [
        "every trainable tensor moved",
        "saved = trained",
        "merged = unmerged",
        "validation improved",
    ]
    assert all(check["passed"] in (True, None) for check in done.result["checks"])
    assert done.result["checks"][1]["value"] == 0.0


def test_run_yaml_says_everything_and_runs_again_to_the_same_bytes(done, place):
    values = yaml.safe_load((done.folder / "run.yaml").read_text())
    assert values["model"]["dtype"] == "float32"
    assert values["method"] == {
        "name": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": ["all"],
        "start": "zero", "start_rows": 64, "eva_rho": 2.0, "eva_tau": 0.99, "ga_gamma": 16.0,
    }  # fmt: skip
    assert values["data"]["format"] == "prompt/completion"
    again = train(knobs=build(RunKnobs, read_yaml(done.folder / "run.yaml")))
    assert again.folder != done.folder
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (again.folder / name).read_bytes() == (done.folder / name).read_bytes()


def test_it_answers(done):
    loaded = microplane.load(done.folder, dtype="float32")
    assert isinstance(loaded.generate("say aa", max_new_tokens=3), str)
    assert loaded.template == "chat"


def test_merged_it_is_a_model_for_transformers(done, tmp_path):
    merged = microplane.merge(done.folder, tmp_path / "merged")
    assert merged.difference < 1e-4
    assert merged.rows == 4
    theirs = transformers.AutoModelForCausalLM.from_pretrained(merged.folder, dtype=torch.float32).eval()
    loaded = microplane.load(done.folder, dtype="float32")
    ids = loaded.prompt("say bb")
    from microplane.nn.rows import Rows

    with torch.no_grad():
        ours = loaded.model.logits(loaded.model(Rows.of([ids])))
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits[0], ours, atol=1e-4, rtol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged.folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say bb"}], add_generation_prompt=True, return_dict=False
    )
    assert chat == ids


def test_eval_gives_what_the_run_said(done, place):
    knobs = build(
        RunKnobs,
        {
            "model": {"name": str(done.folder), "dtype": "float32"},
            "data": {"train": str(place / "rows.jsonl")},
            "eval": {"rows": 3, "max_new_tokens": 4},
        },
    )
    measured = microplane.evaluate(knobs=knobs)
    assert measured["scores"]["loss"] < done.metrics["before"]["loss"]
    assert len(measured["texts"]) == 3


def test_the_command_says_how_many_answers_it_measured(done, place):
    data, sets = str(place / "rows.jsonl"), ["--set", "eval.max_new_tokens=2", "--set", "model.dtype=float32"]
    told = CliRunner().invoke(app, ["eval", str(done.folder), data, *sets, "--set", "eval.rows=3"]).stdout
    assert told.startswith("loss ")
    assert told.endswith("; metrics of the answers to 3 rows\n")
    told = CliRunner().invoke(app, ["eval", str(done.folder), data, *sets, "--set", "eval.rows=0"]).stdout
    assert "answers" not in told


@pytest.mark.parametrize("of", ["", "adapter"])
def test_a_run_that_is_measured_on_its_own_training_rows_is_told_so(of, done, place, tmp_path):
    copy = shutil.copy(place / "rows.jsonl", tmp_path / "rows.jsonl")
    new = tmp_path / "new.jsonl"
    new.write_text('{"prompt": "say zz", "completion": "b"}\n')
    for file, own in ((place / "rows.jsonl", True), (copy, True), (new, False)):
        command = ["eval", str(done.folder / of), str(file), "--set", "eval.rows=0"]
        told = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
        assert told.exit_code == 0, told.output
        assert ("rows are rows that this run was trained on" in " ".join(told.stderr.split())) is own


def test_full_fine_tuning_leaves_a_model_folder(place, tmp_path):
    sets = SETS | {"runs": str(tmp_path), "train.epochs": 2, "train.lr": 1e-3}
    run = microplane.train(str(place / "model"), str(place / "rows.jsonl"), method="full", set=sets)
    assert all(check["passed"] for check in run.result["checks"][:2])
    transformers.AutoModelForCausalLM.from_pretrained(run.folder / "adapter")
    assert isinstance(run.load().generate("say aa", max_new_tokens=2), str)


def test_full_fine_tuning_multiplies_in_bfloat16_and_keeps_float32_weights(place, tmp_path):
    sets = SETS | {"runs": str(tmp_path), "model.dtype": "bfloat16"}
    run = microplane.train(str(place / "model"), str(place / "rows.jsonl"), method="full", set=sets)
    assert all(check["passed"] for check in run.result["checks"][:2])
    with safetensors.safe_open(run.folder / "adapter" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118


def test_a_second_run_gets_a_number_and_a_name_is_not_taken_twice(done, place):
    sets = SETS | {"runs": str(place / "runs"), "train.steps": 1, "eval.rows": 0}
    second = microplane.train(str(place / "model"), str(place / "rows.jsonl"), set=sets)
    assert second.folder.name.startswith("model-lora-rows-")
    with pytest.raises(ConfigError, match=r"the run .*model-lora-rows exists\. Continue it with"):
        microplane.train(str(place / "model"), str(place / "rows.jsonl"), set=sets | {"name": "model-lora-rows"})


def test_resume_of_an_ended_run_gives_the_same_result(done):
    before = (done.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    again = microplane.resume(done.folder)
    assert again.metrics == done.metrics
    assert (done.folder / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_an_instruction_that_all_rows_share_is_put_before_prompts(place, tmp_path):
    rows = [{"instruction": "Say it again.", "input": f"{i} {i}", "output": str(i)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = SETS | {"runs": str(tmp_path / "runs"), "train.steps": 2, "eval.rows": 0}
    loaded = microplane.train(str(place / "model"), str(tmp_path / "rows.jsonl"), set=sets).load()
    assert loaded.prefix == "Say it again.\n\n"
    assert "user\nSay it again.\n\n7 7" in loaded.tokenizer.decode(loaded.prompt("7 7"))
    assert loaded.prompt("7 7") == loaded.prompt("Say it again.\n\n7 7")


def test_prompts_that_share_no_line_get_no_prefix(done):
    assert done.load().prefix == ""
