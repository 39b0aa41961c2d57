"""What the loop keeps and counts, seen from outside: best weights, losses since a validation, seeds of dropout."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from microplane.checkpoints.adapter import save_adapter
from microplane.config.knobs import TrainKnobs
from microplane.methods import make_method
from microplane.methods.method import trainable
from microplane.objectives.next_token import NextToken
from microplane.training import loop
from microplane.training.loop import fit
from microplane.training.resume import checkpoints, step_of
from tests.tiny import copy_task, tiny

KNOBS = TrainKnobs(steps=15, batch_size=8, micro_tokens=32, lr=2e-3, eval_every=5, patience=0, seed=3)


class Followed:
    """A run whose validation losses are given, one for each check."""

    def __init__(self, folder, losses, knobs=KNOBS):
        self.folder, self.saved, self.weights, losses = folder, [], [], iter(losses)
        self.method, self.model = make_method({"name": "lora", "rank": 2, "dropout": 0.1}), tiny()
        self.method.attach(self.model)

        def validate(model):
            self.weights.append({name: tensor.detach().clone() for name, tensor in trainable(model).items()})
            return next(losses)

        def save_best(step, loss):
            self.saved.append(step)
            save_adapter(folder / "adapter", self.model, self.method, {"step": step})

        given = {"objective": NextToken(), "validate": validate, "save_best": save_best, "identity": {}}
        self.outcome = fit(self.model, self.method, copy_task(40), knobs, folder, **given)

    @property
    def records(self):
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def test_the_adapter_holds_the_weights_of_the_best_check_and_not_the_last(tmp_path):
    run = Followed(tmp_path, [3.0, 2.0, 2.01, 2.005])
    assert run.saved == [0, 5]
    assert run.outcome.best_step == 5
    assert run.outcome.validation_loss == 2.0
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    kept = sorted(float(tensor.double().square().sum()) for tensor in saved.values())
    best, last = (sorted(float(x.double().square().sum()) for x in run.weights[at].values()) for at in (1, -1))
    assert kept == pytest.approx(best, rel=1e-6)
    assert kept != pytest.approx(last, rel=1e-6)


def test_of_equal_checks_the_earlier_one_is_kept(tmp_path):
    run = Followed(tmp_path, [3.0, 2.0, 2.0, 2.0])
    assert run.saved == [0, 5]
    assert [record["best"] for record in run.records if "best" in record] == [True, True, False, False]


def test_the_training_loss_of_a_check_is_of_the_steps_since_the_last_one(tmp_path):
    run = Followed(tmp_path, [3.0, 2.5, 2.2, 2.0])
    losses = [record["loss"] for record in run.records if "loss" in record]
    assert len(losses) == 15
    assert run.outcome.train_loss == pytest.approx(sum(losses[-5:]) / 5)
    assert sum(losses[-5:]) / 5 != pytest.approx(sum(losses) / 15)


def seeds(folder, monkeypatch, seed):
    """Those that dropout draws its masks from, in the order of the micro-batches of three steps."""
    drawn, real = [], NextToken.loss

    def loss(self, model, batch, *given):
        if model.training:
            drawn.append(torch.initial_seed())
        return real(self, model, batch, *given)

    with monkeypatch.context() as patch:
        patch.setattr(NextToken, "loss", loss)
        Followed(folder, [3.0, 2.0], KNOBS.model_copy(update={"steps": 3, "seed": seed}))
    return drawn


def test_each_micro_batch_of_each_step_of_each_run_draws_its_own_masks(tmp_path, monkeypatch):
    one, again, other = (seeds(tmp_path / str(n), monkeypatch, seed) for n, seed in enumerate((3, 3, 4)))
    assert one == again
    assert len(one) > 2 * 3, "several micro-batches in a step"
    assert len({*one, *other}) == len(one) + len(other)


def test_a_run_that_made_all_its_steps_did_not_stop_early(tmp_path):
    knobs = KNOBS.model_copy(update={"patience": 2})
    early, whole = (Followed(tmp_path / str(n), given, knobs) for n, given in enumerate(([2, 3, 3], [3, 2, 3, 3])))
    assert (early.outcome.totals.step, early.outcome.stopped_early) == (10, True)
    assert (whole.outcome.totals.step, whole.outcome.stopped_early) == (15, False)


def test_a_run_that_was_interrupted_is_not_told_to_be_longer(tmp_path, monkeypatch):
    looks = iter([False] * 12)

    @contextmanager
    def after_some_steps(on, orderly):
        assert orderly
        yield lambda: next(looks, True)

    monkeypatch.setattr(loop, "interruptible", after_some_steps)
    outcome = Followed(tmp_path, [3.0, 2.0]).outcome
    assert outcome.interrupted
    assert (outcome.totals.step, outcome.best_step, outcome.verdict) == (6, 5, None)


def test_passes_and_speeds_are_of_the_tokens_that_were_read(tmp_path):
    run = Followed(tmp_path, [3.0, 2.0, 2.5, 2.5])
    assert run.outcome.best["passes"] == 1, "five steps of eight rows, of which there are forty"
    clock = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    steps = [record for record in run.records if "loss" in record]
    assert len(clock) >= len(steps) == 15
    by_step = {line["step"]: line for line in clock if "seconds" in line}
    for record in steps:
        line = by_step[record["step"]]
        assert line["tokens_per_second"] * line["seconds"] == pytest.approx(record["tokens"])
        assert line["trained_tokens_per_second"] * line["seconds"] == pytest.approx(record["trained_tokens"])


def test_the_checkpoint_before_the_last_is_kept_too(tmp_path):
    """To go on from, if the last one is damaged; where the rate may be lowered, the start's and the best one's also."""
    Followed(tmp_path / "a", [3.0, 2.0, 2.5, 2.5])
    assert steps(tmp_path / "a") == [10, 15]
    Followed(tmp_path / "b", [3.0, 2.0, 2.01, 2.01], KNOBS.model_copy(update={"on_divergence": "lower_lr"}))
    assert steps(tmp_path / "b") == [0, 5, 10, 15]


def steps(folder):
    return [step_of(checkpoint) for checkpoint in checkpoints(folder / "resume")]
