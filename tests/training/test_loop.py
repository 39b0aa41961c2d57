"""The loop: resume, accumulation, stopping, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.errors import CheckpointError, MicroplaneWarning, TrainingError
from microplane.methods import make_method
from microplane.objectives.next_token import NextToken
from microplane.training import loop
from microplane.training.resume import checkpoints
from tests.tiny import copy_task, tiny
from tests.training.fitting import Killed, fit_next_token

TRAIN, HELD_OUT = copy_task(40), copy_task(8, seed=1)
KNOBS = TrainKnobs(epochs=4, batch_size=8, micro_tokens=32, lr=2e-2, eval_every=5, patience=0, seed=3)
IDENTITY = {"train rows": "a", "method": {"name": "lora"}}


def run(folder, knobs=KNOBS, data=TRAIN, kill_at=None, identity=IDENTITY, resume=False, method="lora", **changes):
    method = make_method({"name": method, "rank": 4, "dropout": 0.1, **changes} if method == "lora" else method)
    model = tiny()
    torch.manual_seed(knobs.seed)
    method.attach(model)

    def kill(record):
        return kill_at and record["step"] == kill_at and "loss" in record

    given = {"kill": kill, "identity": identity, "resume": resume}
    return fit_next_token(folder, model, method, data, knobs, HELD_OUT, **given)


def result_bytes(folder):
    return (folder / "metrics.jsonl").read_bytes(), (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    outcome = run(folder)
    return folder, outcome


@pytest.mark.parametrize("kill_at", [1, 2, 5, 6, 9, 13, 20])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, straight, kill_at):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    run(tmp_path, resume=True)
    assert result_bytes(tmp_path) == result_bytes(straight[0])


def test_resume_before_the_first_checkpoint_starts_anew(tmp_path, straight):
    run(tmp_path, resume=True)
    assert result_bytes(tmp_path) == result_bytes(straight[0])


def test_resume_of_an_ended_run_changes_nothing(tmp_path, straight):
    run(tmp_path)
    again = run(tmp_path, resume=True)
    assert again.best_step == straight[1].best_step
    assert result_bytes(tmp_path) == result_bytes(straight[0])


def test_it_learns_and_the_best_is_kept(straight):
    folder, outcome = straight
    losses = [r["validation_loss"] for r in records(folder) if "validation_loss" in r]
    assert outcome.validation_loss == min(losses)
    assert outcome.validation_loss < losses[0]
    assert outcome.moved == outcome.tensors == 28
    assert outcome.totals.step == outcome.steps_planned == 20


def test_accumulation_divides_once_by_all_trained_tokens_of_the_step(tmp_path):
    plain = {"dropout": 0.0}
    small = run(tmp_path / "small", KNOBS.model_copy(update={"micro_tokens": 16, "steps": 4}), **plain)
    large = run(tmp_path / "large", KNOBS.model_copy(update={"micro_tokens": 4096, "steps": 4}), **plain)
    assert small.validation_loss == pytest.approx(large.validation_loss, rel=1e-5)
    for a, b in zip(records(tmp_path / "small"), records(tmp_path / "large"), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_labels_are_smoothed_in_training_only(tmp_path):
    knobs = KNOBS.model_copy(update={"steps": 1})
    run(tmp_path / "plain", knobs)
    run(tmp_path / "smoothed", knobs.model_copy(update={"label_smoothing": 0.3}))
    plain, smoothed = records(tmp_path / "plain"), records(tmp_path / "smoothed")
    assert plain[0] == smoothed[0]  # the validation before the first step
    assert plain[1]["loss"] != smoothed[1]["loss"]
    assert plain[2]["validation_loss"] != smoothed[2]["validation_loss"]  # another gradient was followed


@pytest.mark.parametrize("adapted_head", [False, True])
def test_the_smoothed_loss_is_torchs(adapted_head):
    model, batch = tiny("llama-untied"), NextToken().collate(TRAIN, range(6))
    if adapted_head:
        make_method({"name": "lora", "targets": ["head"]}).attach(model)
    logits = model.logits(model(batch.rows))[batch.positions]
    wanted = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=0.3)
    torch.testing.assert_close(NextToken().loss(model, batch, 0.3), wanted)


def test_early_stop_and_the_sentence_on_overfitting(tmp_path):
    few = copy_task(4, seed=5)
    knobs = KNOBS.model_copy(update={"epochs": 300, "patience": 3, "eval_every": 5, "schedule": "constant", "lr": 5e-2})
    outcome = run(tmp_path, knobs, data=few, dropout=0.0)
    assert outcome.stopped_early
    assert outcome.totals.step < outcome.steps_planned
    assert outcome.verdict is not None
    assert str(outcome.verdict) == f"overfitting since step {outcome.best_step}"
    more = knobs.model_copy(update={"epochs": 400})
    with pytest.warns(MicroplaneWarning, match="worse 3 times in a row, and the run stopped .* larger train.patience"):
        again = run(tmp_path, more, data=few, dropout=0.0, resume=True)
    assert again.totals.step == outcome.totals.step


def test_an_interrupt_finishes_the_step_and_saves(tmp_path, straight, monkeypatch):
    import os
    import signal

    real = loop.train_step

    def step(job, totals):
        record = real(job, totals)
        if totals.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return record

    monkeypatch.setattr(loop, "train_step", step)
    outcome = run(tmp_path)
    assert outcome.interrupted
    assert outcome.totals.step == 7
    assert checkpoints(tmp_path / "resume")[-1].name == "step-00000007"
    monkeypatch.setattr(loop, "train_step", real)
    run(tmp_path, resume=True)
    assert result_bytes(tmp_path) == result_bytes(straight[0])


def test_not_a_number_stops_with_step_and_rows_and_keeps_the_best(tmp_path, monkeypatch):
    real = NextToken.loss

    def broken(self, model, *given):
        broken.calls += model.training  # and not in validation
        return real(self, model, *given) * (math.nan if broken.calls > 30 else 1)

    broken.calls = 0
    monkeypatch.setattr(NextToken, "loss", broken)
    with pytest.raises(TrainingError, match=r"the loss became nan in step \d+, in the rows memory:\d+.*\n.*train.lr"):
        run(tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_tensor_that_does_not_move_stops_the_run(tmp_path):
    with pytest.raises(
        TrainingError, match=r"14 of 28 trainable tensors have not moved after 3 steps:\n  layers.0.*lora_A"
    ):
        run(tmp_path, KNOBS.model_copy(update={"lr": 1e-30}))


@pytest.mark.parametrize("rate", [1e5, 1e9])
def test_tensors_that_stand_still_beside_large_ones_are_laid_to_the_rate(rate, tmp_path):
    with pytest.raises(
        TrainingError, match=r"have not moved(.|\n)*the learning rate is too high. Try a smaller train.lr"
    ):
        run(tmp_path, KNOBS.model_copy(update={"lr": rate, "clip": math.inf}))


def test_a_decay_beyond_the_weights_is_the_suspect(tmp_path):
    with pytest.raises(TrainingError, match=r"The weight decay is too high.*smaller train\.weight_decay"):
        run(tmp_path, KNOBS.model_copy(update={"lr": 1e-2, "weight_decay": 1e12}))


def test_a_step_without_a_trained_token_is_an_error(tmp_path):
    data = copy_task(8)
    data.rows = [(ids, mask & False) for ids, mask in data.rows]
    data.trained_counts[:] = 0
    with pytest.raises(TrainingError, match="step 1 has no trained token in its rows memory:"):
        run(tmp_path, data=data)


def test_a_resume_with_something_else_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=6)
    with pytest.raises(CheckpointError, match=r"train rows: 'a' then, 'b' now"):
        run(tmp_path, resume=True, identity=IDENTITY | {"train rows": "b"})


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_a_changed_checkpoint_is_noticed(tmp_path, name):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=8)
    path = checkpoints(tmp_path / "resume")[-1] / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"damaged or was changed: {name}"):
        run(tmp_path, resume=True)


def test_a_checkpoint_without_its_state_is_no_checkpoint(tmp_path, straight):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=8)
    (checkpoints(tmp_path / "resume")[-1] / "state.json").unlink()
    run(tmp_path, resume=True)
    assert result_bytes(tmp_path) == result_bytes(straight[0])


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adafactor", "scale_parameter": True, "label_smoothing": 0.1}])
def test_full_fine_tuning_resumes_too(tmp_path, changes):
    knobs = KNOBS.model_copy(update={"steps": 6, "eval_every": 2, "lr": 1e-2, **changes})
    run_full = lambda folder, **more: run(folder, knobs, method="full", **more)  # noqa: E731
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    run_full(tmp_path / "a")
    with pytest.raises(Killed):
        run_full(tmp_path / "b", kill_at=5)
    run_full(tmp_path / "b", resume=True)
    for name in ("metrics.jsonl", "adapter/model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_freed_memory_is_given_back_once_it_has_piled_up(monkeypatch):
    given = []
    monkeypatch.setattr(loop, "give_back_memory", lambda: given.append(len(held)))
    trimmer, held = loop.MemoryTrimmer(), []

    def steps(count, size):
        for _ in range(count):
            held.append(size)
            trimmer.update(size)

    steps(10, 100)
    steps(5, 130)
    steps(25, 109)
    assert given == []  # at steps 20, 30 and 40 it is no more than usual
    steps(40, 130)
    assert given == [50]  # afterwards 130 is what it takes
