"""Suites of lm-eval: its own reader of Hugging Face folders gives the same for what was merged."""

from __future__ import annotations

import json

import pytest

import microplane
from microplane.inference.pipeline import load
from microplane.models.files.load import save_model
from microplane.runs.suites import evaluate_suites
from tests.tiny import PAIR_CONFIGS, save_byte_tokenizer, save_tiny_folder

CHOICE = """task: towns
dataset_path: json
dataset_kwargs:
  data_files: {test: ROWS}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 3}
"""
SAID = """task: said
dataset_path: json
dataset_kwargs:
  data_files: {test: ROWS}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["k"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
TEXT = """task: whole
dataset_path: json
dataset_kwargs:
  data_files: {test: ROWS}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.fixture
def tasks(tmp_path):
    """A folder of three tasks on 30 rows, one of them longer than the tiny models read."""
    pytest.importorskip("lm_eval", reason="pip install 'microplane[suites]'")
    rows = [
        {"question": f"town {i}: " + "ab" * (i % 5), "choices": [f"x{i}", "yes and no"], "answer": i % 2, "said": "k"}
        for i in range(29)
    ]
    rows.append({"question": "z" * 150, "choices": ["a", "bb"], "answer": 0, "said": "k"})
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("said", SAID), ("text", TEXT)):
        (folder / f"{name}.yaml").write_text(text.replace("ROWS", str(folder / "rows.jsonl")))
    return folder


def figures(result):
    return {(score.task, score.metric): score.value for score in result.scores}


def theirs(folder, tasks, names):
    """The same tasks by lm-eval's own model of a folder."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks))
    about = {"pretrained": str(folder), "dtype": "float32"}
    found = simple_evaluate("hf", about, names, batch_size=4, device="cpu", task_manager=manager)
    results = found["results"]
    return results, {(sample["doc_id"]): sample["filtered_resps"] for sample in found["samples"][names[0]]}


def same_as_theirs(ours, tasks, folder, names):
    results, said = theirs(folder, tasks, names)
    for (task, metric), value in figures(ours).items():
        assert value == pytest.approx(results[task][f"{metric},none"], abs=1e-3)
    for sample in ours.samples:
        if sample["task"] == names[0]:
            for (one, greedy), (other, other_greedy) in zip(sample["said"], said[sample["row"]], strict=True):
                assert one == pytest.approx(other, abs=1e-3)
                assert greedy == other_greedy


@pytest.mark.slow
def test_a_run_scores_as_its_merged_folder_does_there(tmp_path, tasks):
    base = save_tiny_folder(tmp_path / "base", "llama-tied", max_position_embeddings=128)
    rows = [{"prompt": f"town {i}", "completion": f"x{i}"} for i in range(40)]
    how = {"train.steps": 6, "train.lr": 0.01, "model.dtype": "float32", "eval.rows": 0, "runs": str(tmp_path / "runs")}
    run = microplane.train(base, rows, method="lora", set=how)
    microplane.merge(run.folder, tmp_path / "merged")
    names = ["towns", "whole", "said"]
    with pytest.warns(microplane.errors.MicroplaneWarning, match="2 of 60 questions are longer than the 128 tokens"):
        ours = evaluate_suites(run.folder, names, folder=tasks)
    same_as_theirs(ours, tasks, tmp_path / "merged", names)
    assert {score.rows for score in ours.scores} == {30}
    ours.write_samples(tmp_path / "samples.jsonl")
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 90


@pytest.mark.slow
def test_an_encoder_decoder_scores_as_it_does_there(tmp_path, tasks):
    folder = tmp_path / "t5"
    folder.mkdir()
    count = save_byte_tokenizer(folder, ends=True)
    from microplane.models.families import family_of

    config = PAIR_CONFIGS["t5-v1.0"] | {"vocab_size": count, "n_positions": 64, "pad_token_id": 0, "eos_token_id": 1}
    save_model(family_of(config).from_hf(config).init_weights(0), folder)
    names = ["towns", "said"]
    ours = evaluate_suites(load(folder, dtype="float32"), names, folder=tasks)  # bfloat16 where the processor has it
    same_as_theirs(ours, tasks, folder, names)
