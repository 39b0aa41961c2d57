"""What of a sharded model needs no second process; tests/training/test_ranks.py has the rest."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from microplane.config.knobs import TrainKnobs
from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.nn.sharded import save_gathered, whole
from microplane.objectives.next_token import NextToken
from microplane.runs.others import check_knobs
from microplane.training import step
from microplane.training.ranks import ALONE, Ranks
from tests.tiny import copy_task, tiny

FULL = make_method("full")


def test_a_file_written_tensor_by_tensor_is_the_one_that_safetensors_writes(tmp_path):
    tensors = {
        "b.weight": torch.arange(6.0).view(2, 3),
        "a.weight": torch.ones(3, dtype=torch.bfloat16),
        "c.empty": torch.zeros(0, 4),
        "d.one": torch.tensor(7, dtype=torch.int64),
        "é": torch.tensor([True, False]),
    }
    save_gathered(tensors, tmp_path / "own", {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    read = load_file(tmp_path / "own")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert whole(tensors["b.weight"]) is tensors["b.weight"]
    own, theirs = ((tmp_path / name).read_bytes() for name in ("own", "theirs"))
    numbers = sum(tensor.nbytes for tensor in tensors.values())
    assert own[-numbers:] == theirs[-numbers:]


@pytest.mark.parametrize(
    ("method", "knobs", "size", "said"),
    [
        ("lora", {}, 2, "the method lora leaves most of them as they are"),
        ("full", {"unfreeze_every": 2}, 2, "train.shard and train.unfreeze_every cannot be had together"),
        ("full", {"optimizer": "adafactor"}, 2, "those of train.optimizer=adafactor belong to whole tensors"),
        ("full", {"optimizer": "adamw_8bit"}, 2, "those of train.optimizer=adamw_8bit belong to whole tensors"),
        ("full", {}, 1, "add --processes 2"),
    ],
)
def test_what_cannot_be_sharded_is_refused(method, knobs, size, said):
    with pytest.raises(ConfigError, match=said):
        check_knobs(TrainKnobs(shard=True, **knobs), make_method(method), Ranks(0, size), begun=False)


def test_one_process_goes_on_with_what_several_have_begun():
    assert "holds the whole model" in str(check_knobs(TrainKnobs(shard=True), FULL, ALONE, begun=True))
    assert check_knobs(TrainKnobs(shard=True), FULL, Ranks(0, 2), begun=False) == []
    auto = TrainKnobs(micro_tokens="auto")
    assert check_knobs(auto, make_method("lora"), ALONE, begun=False) == []
    assert "2,048 throughout" in check_knobs(auto, make_method("lora"), Ranks(0, 2), begun=False)[0]


class BesideALonger(Ranks):
    """The first of two ranks that hold a model together; the other one has two micro-batches more in each step."""

    def share(self, rows, lengths):
        return rows

    def each(self, value, patient=False):
        return [value, (0, value[1] + 2)]

    def joined_lists(self, values):
        return values

    def norm(self, share):
        return share


def test_what_a_rank_computes_for_the_others_adds_nothing(monkeypatch):
    passes = []
    compute = step._compute_for_others
    monkeypatch.setattr(step, "_compute_for_others", lambda *given: (passes.append(1), compute(*given)))

    def trained(ranks):
        model, knobs = tiny(), TrainKnobs(steps=3, batch_size=4, lr=1e-2)
        FULL.attach(model)
        state, totals = step.TrainState.of(NextToken(), model, FULL, copy_task(12), knobs, ranks), step.Totals()
        losses = [step.train_step(state, totals)["loss"] for _ in range(3)]
        return losses, [parameter.detach() for parameter in model.parameters()]

    (alone, weights), (losses, same) = trained(ALONE), trained(BesideALonger(0, 2, sharded=True))
    assert len(passes) == 6
    assert losses == alone
    assert all(torch.equal(one, other) for one, other in zip(weights, same, strict=True))


def test_who_shares_out_the_weights_shares_out_what_is_computed_at_once():
    def rows_at_once(ranks):
        model = tiny()
        FULL.attach(model)
        knobs = TrainKnobs(steps=3, batch_size=12, micro_tokens=64)
        state, totals = step.TrainState.of(NextToken(), model, FULL, copy_task(12), knobs, ranks), step.Totals()
        return state.at_once(totals), len(state.cut(0, state.at_once(totals))[2])

    assert rows_at_once(ALONE)[0] == rows_at_once(Ranks(0, 2))[0] == 64
    assert rows_at_once(BesideALonger(0, 2, sharded=True))[0] == 32
    assert rows_at_once(BesideALonger(0, 2, sharded=True))[1] > rows_at_once(ALONE)[1]
