"""A run at far too high a rate goes back to its best weights and on at a smaller one, to the same bits after kills."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.errors import TrainingError
from microplane.evaluation.evaluate import validation_loss
from microplane.methods import METHODS, make_method
from microplane.objectives.next_token import NextToken
from microplane.training import loop
from microplane.training.loop import TrainState
from microplane.training.resume import checkpoints, load_checkpoint, save_checkpoint
from tests.tiny import copy_task, tiny
from tests.training.fitting import Killed, fit_next_token

TRAIN, HELD_OUT = copy_task(200), copy_task(40, seed=1)
KNOBS = TrainKnobs(epochs=3, batch_size=8, eval_every=10, patience=0, seed=3, warmup=0.0)


RATE = 0.1  # far too high


@pytest.fixture(autouse=True)
def far_too_high(monkeypatch):
    """LoRA's default rate, which is the one that a run without train.lr takes."""
    monkeypatch.setattr(METHODS["lora"], "default_lr", RATE)


@cache
def pretrained():
    """The weights of a model that knows something of the task, and so has something to lose."""
    model, method = tiny(), make_method("full")
    torch.manual_seed(0)
    method.attach(model)
    state = TrainState.of(NextToken(), model, method, copy_task(400, seed=9), TrainKnobs(epochs=12, lr=3e-3))
    totals = loop.Totals()
    for _ in range(state.total):
        loop.train_step(state, totals)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def run(folder, knobs=KNOBS, resume=False, kill=None, measured=validation_loss):
    method = make_method({"name": "lora", "rank": 4})
    model = tiny()
    model.load_state_dict(pretrained())
    torch.manual_seed(knobs.seed)
    method.attach(model)

    given = {"kill": kill, "identity": {"rows": "a"}, "resume": resume, "measured": measured}
    return fit_next_token(folder, model, method, TRAIN, knobs, HELD_OUT, **given)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result_bytes(folder):
    return (folder / "metrics.jsonl").read_bytes(), (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS["lora"], "default_lr", RATE)
        folder = tmp_path_factory.mktemp("straight")
        return folder, run(folder)


def test_it_goes_back_to_the_best_and_ends_better_than_it_began(straight):
    folder, outcome = straight
    lines = records(folder)
    events = [line["retreat"] for line in lines if "retreat" in line]
    assert events == outcome.retreats
    assert 1 <= len(events) <= loop.RETREATS
    factor = 1.0
    for event in events:
        factor = factor / 3 if event["step"] else min(1 / 10, factor / 3)
        assert event["lr_factor"] == pytest.approx(factor)
        assert event["step"] < event["from_step"]
        assert event["why"]
        assert all(check["step"] > event["step"] for check in event["checks"])
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, outcome.steps_planned + 1))  # each step once, those that were taken back left out
    before = lines[0]["validation_loss"]
    assert outcome.validation_loss < 0.99 * before
    last = [line for line in lines if "loss" in line and line["step"] > events[-1]["step"]]
    assert last[0]["lr"] <= RATE * events[-1]["lr_factor"]


def test_from_the_start_it_takes_a_tenth_and_from_a_better_place_a_third(tmp_path):
    """A warm-up over most of the run: the first steps have a rate at which something is learnt."""
    slow = run(tmp_path / "slow", KNOBS.model_copy(update={"warmup": 0.9}))
    assert [(event["step"], round(event["lr_factor"], 4)) for event in slow.retreats] == [(10, 0.3333), (20, 0.1111)]
    assert slow.best_step > 20
    at_once = run(tmp_path / "at once")
    assert [(event["step"], event["lr_factor"]) for event in at_once.retreats] == [(0, pytest.approx(0.1))]


@pytest.mark.parametrize(
    ("ignoring", "back"),
    [({3}, [(0, 20, 0.1)]), ({6, 7}, [(40, 50, 0.3333), (0, 50, 0.1)])],  # checks at 0, 10, 20 and so on
    ids=["in the first half", "later, and again"],
)
def test_inputs_that_are_ignored_early_or_again_send_it_back_to_the_start(tmp_path, ignoring, back):
    """Its best weights had been on the way there already."""
    calls = []

    def measured(*given):
        calls.append(1)
        return replace(validation_loss(*given), ignores_inputs=len(calls) in ignoring)

    knobs = KNOBS.model_copy(update={"lr": 1e-3, "on_divergence": "lower_lr"})
    outcome = run(tmp_path, knobs, measured=measured)
    told = [(event["step"], event["from_step"], round(event["lr_factor"], 4)) for event in outcome.retreats]
    assert told == back
    assert all("whatever it is asked" in event["why"] for event in outcome.retreats)
    assert outcome.best_step > 20
    steps = [line["step"] for line in records(tmp_path) if "loss" in line]
    assert steps == list(range(1, outcome.steps_planned + 1))


@pytest.mark.parametrize("when", ["before it goes back", "at the event", "later"])
def test_a_kill_around_it_leaves_the_same_bits(tmp_path, straight, when):
    event = straight[1].retreats[0]
    tests = {
        "before it goes back": lambda r: r.get("validation_loss") and r["step"] == event["from_step"],
        "at the event": lambda r: "retreat" in r,
        "later": lambda r: "loss" in r and r["step"] == event["step"] + 3 and r["lr"] < RATE / 2,
    }
    with pytest.raises(Killed):
        run(tmp_path, kill=tests[when])
    run(tmp_path, resume=True)
    assert result_bytes(tmp_path) == result_bytes(straight[0])


@pytest.mark.parametrize("step", ["save_checkpoint", "forget_after", "rewind"])
def test_a_kill_in_the_middle_of_it_leaves_the_same_bits(tmp_path, straight, monkeypatch, step):
    home = loop.Log if step == "rewind" else loop.checkpoint

    def killed(*given, **named):
        raise Killed

    entered = []
    real_retreat = loop.Training.retreat

    def retreat(self, why):
        if not entered:
            entered.append(True)
            with monkeypatch.context() as patch:
                patch.setattr(home, step, killed)
                return real_retreat(self, why)
        return real_retreat(self, why)

    monkeypatch.setattr(loop.Training, "retreat", retreat)
    with pytest.raises(Killed):
        run(tmp_path)
    run(tmp_path, resume=True)
    assert result_bytes(tmp_path) == result_bytes(straight[0])


def test_a_rate_that_was_asked_for_is_kept_and_blamed(tmp_path):
    outcome = run(tmp_path, KNOBS.model_copy(update={"lr": RATE, "patience": 1}))
    assert not outcome.retreats
    assert outcome.stopped_early
    assert outcome.verdict is not None
    assert outcome.verdict.kind == "divergence"


def test_the_knob_decides_where_it_is_set(tmp_path):
    asked = KNOBS.model_copy(update={"lr": RATE, "on_divergence": "lower_lr"})
    assert run(tmp_path / "asked", asked).retreats
    assert not run(tmp_path / "never", KNOBS.model_copy(update={"on_divergence": "go_on"})).retreats


def test_a_loss_that_is_no_number_is_divergence_too_but_not_in_the_first_step(tmp_path, monkeypatch):
    real = NextToken.loss

    def broken(first):
        calls = []

        def loss(self, model, *given):
            calls.append(model.training)
            return real(self, model, *given) * (float("nan") if sum(calls) == first and model.training else 1)

        return loss

    monkeypatch.setattr(METHODS["lora"], "default_lr", 1e-2)
    monkeypatch.setattr(NextToken, "loss", broken(14))
    outcome = run(tmp_path / "later")
    assert "the loss became nan" in outcome.retreats[0]["why"]
    monkeypatch.setattr(NextToken, "loss", broken(1))
    with pytest.raises(TrainingError, match="the loss became nan in step 1"):
        run(tmp_path / "first")


def test_the_checkpoint_of_the_best_check_stays(tmp_path, straight):
    kept = [int(path.name[5:]) for path in checkpoints(straight[0] / "resume")]
    assert straight[1].best_step in kept


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_goes_back_to_an_earlier_checkpoint_in_the_same_process(tmp_path, name):
    method, model = make_method(name), tiny({"head-only": "llama-untied", "bitfit": "qwen2"}.get(name, "llama-tied"))
    torch.manual_seed(0)
    method.attach(model)
    state = TrainState.of(NextToken(), model, method, TRAIN, KNOBS.model_copy(update={"lr": 1e-2}))
    totals = loop.Totals()
    for _ in range(2):
        loop.train_step(state, totals)
    save_checkpoint(tmp_path, 2, model, method, state.optimizer, {"identity": {}})
    then = {key: value.clone() for key, value in model.state_dict().items()}
    first = loop.train_step(state, totals)
    loop.train_step(state, totals)
    load_checkpoint(tmp_path / "step-00000002", model, method, state.optimizer)
    state.optimizer.zero_grad(set_to_none=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in then.items())
    assert loop.train_step(state, loop.Totals(step=2))["loss"] == first["loss"]
