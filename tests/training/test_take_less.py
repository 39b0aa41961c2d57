"""train.micro_tokens=auto: where memory does not hold a step, it is made again with half as many tokens at once."""

from __future__ import annotations

import pytest
import torch

from microplane.config.knobs import MICRO_TOKENS, TrainKnobs
from microplane.errors import MicroplaneWarning, TrainingError
from microplane.methods import make_method
from microplane.objectives.next_token import NextToken
from microplane.training.ahead import Ahead, StepRows
from tests.tiny import copy_task, tiny
from tests.training.fitting import Killed, fit_next_token

KNOBS = TrainKnobs(steps=6, batch_size=8, micro_tokens="auto", lr=1e-2, eval_every=3, patience=0)
TRAIN, HELD_OUT = copy_task(40), copy_task(8, seed=1)
LONGEST = int(TRAIN.lengths.max())
TORCHS = torch.OutOfMemoryError("tried to allocate 3 GiB")
CPUS = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


class Memory:
    """Of a device that holds the loss of so many tokens, and no more; notes how many each loss was of."""

    def __init__(self, monkeypatch, holds, error=TORCHS, fails_in=lambda losses: True):
        self.seen, own = [], NextToken.loss

        def loss(objective, model, batch, *more):
            tokens = sum(batch.rows.lengths)
            self.seen += [tokens] if model.training else []
            if model.training and tokens > holds and fails_in(len(self.seen)):
                raise error
            return own(objective, model, batch, *more)

        monkeypatch.setattr(NextToken, "loss", loss)


def run(folder, knobs=KNOBS, kill_at=None, **given):
    method, model = make_method("lora"), tiny()
    torch.manual_seed(0)
    method.attach(model)
    kill = (lambda record: record["step"] == kill_at and "loss" in record) if kill_at else None
    outcome = fit_next_token(folder, model, method, TRAIN, knobs, HELD_OUT, kill=kill, **given)
    return outcome, (folder / "metrics.jsonl").read_bytes()


def told(first, last):
    return rf"step 1: the memory does not hold {first:,} tokens at once; on with {last:,} \(train\.micro_tokens=auto\)"


@pytest.mark.parametrize("error", [TORCHS, CPUS, MemoryError()], ids=["torch", "cpu", "python"])
@pytest.mark.filterwarnings("ignore::microplane.errors.MicroplaneWarning")
def test_a_run_goes_on_as_if_it_had_begun_with_less(monkeypatch, tmp_path, error):
    with monkeypatch.context() as patch:
        Memory(patch, LONGEST + 1, error)
        outcome, metrics = run(tmp_path / "auto")
    taken = MICRO_TOKENS >> outcome.totals.halvings
    assert LONGEST // 2 < taken <= LONGEST + 1
    begun_with_less = run(tmp_path / "less", KNOBS.model_copy(update={"micro_tokens": taken}))[1]
    assert metrics == begun_with_less


def test_each_halving_is_said(monkeypatch, tmp_path):
    Memory(monkeypatch, LONGEST + 1)
    with pytest.warns(MicroplaneWarning, match=told(2048, 1024)), pytest.warns(MicroplaneWarning, match=told(64, 32)):
        run(tmp_path)


@pytest.mark.filterwarnings("ignore::microplane.errors.MicroplaneWarning")
def test_what_a_failed_step_left_is_no_part_of_the_next(monkeypatch, tmp_path):
    """It fails in its last micro-batch: the gradients of those before are taken back."""
    knobs = KNOBS.model_copy(update={"steps": 2, "eval_every": 2})
    monkeypatch.setattr("microplane.config.knobs.MICRO_TOKENS", 4 * LONGEST)
    with monkeypatch.context() as patch:
        memory = Memory(patch, 0, fails_in=lambda losses: losses == 2)
        outcome, _ = run(tmp_path / "auto", knobs)
    assert outcome.totals.halvings == 1, memory.seen
    whole, _ = run(tmp_path / "whole", knobs.model_copy(update={"micro_tokens": 4 * LONGEST}))
    assert outcome.validation_loss == pytest.approx(whole.validation_loss, rel=1e-5)


@pytest.mark.filterwarnings("ignore::microplane.errors.MicroplaneWarning")
def test_a_killed_run_knows_how_much_it_could_hold(monkeypatch, tmp_path):
    Memory(monkeypatch, LONGEST + 1)
    straight = run(tmp_path / "straight")[1]
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=5)
    later = Memory(monkeypatch, 10**9)  # which would hold all
    assert run(tmp_path / "killed", resume=True)[1] == straight
    assert max(later.seen) <= max(LONGEST, 64)


SAID = r"does not hold a step: tried to allocate 3 GiB\nTake less at once: half of train\.micro_tokens"


def test_it_ends_where_less_was_not_asked_for(monkeypatch, tmp_path):
    Memory(monkeypatch, LONGEST + 1)
    with pytest.raises(TrainingError, match=SAID):
        run(tmp_path, KNOBS.model_copy(update={"micro_tokens": 4096}))


def test_it_ends_where_one_row_is_too_much(monkeypatch, tmp_path):
    Memory(monkeypatch, 1)
    with pytest.raises(TrainingError, match=SAID), pytest.warns(MicroplaneWarning) as told:
        run(tmp_path)
    last = [str(one.message) for one in told if "on with" in str(one.message)][-1]
    assert int(last.split("on with ")[1].split()[0]) >= TRAIN.lengths.min()  # before that rows were side by side


def test_a_step_that_has_begun_to_move_weights_is_not_made_anew(monkeypatch, tmp_path):
    def full(*given):
        raise TORCHS

    monkeypatch.setattr("microplane.methods.lora.LoRA.step", full)
    with pytest.raises(TrainingError, match=r"(?s)does not hold a step: tried .*train\.optimizer=adamw_8bit"):
        run(tmp_path)


def test_another_error_is_no_lack_of_memory(monkeypatch, tmp_path):
    Memory(monkeypatch, 1, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path)


def test_rows_that_were_made_ahead_are_those_that_were_asked_for():
    made = []

    def make(step, at_once):
        made.append((step, at_once))
        return StepRows(step, at_once, TRAIN, TRAIN.lengths, [], [])

    ahead = Ahead(make)
    ahead.prepare(3, 64)
    assert ahead.take(3, 64).step == 3
    assert made == [(3, 64)]
    ahead.prepare(4, 64)
    assert ahead.take(4, 32).at_once == 32  # since then less was taken
    assert ahead.take(4, 64).at_once == 64  # nothing is kept of what was not taken
    ahead.prepare(5, 64)
    assert ahead.take(2, 64).step == 2  # a run that went back
    assert made == [(3, 64), (4, 64), (4, 32), (4, 64), (5, 64), (2, 64)]
