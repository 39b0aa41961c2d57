"""Numbers of any size are learnt, and every file and tool gives them in the unit of the labels."""

from __future__ import annotations

import math
import random

import numpy as np
import peft
import pytest
import torch
import transformers

import microplane
from microplane.adapters.merge import merge
from microplane.checkpoints.adapter import load_adapter, save_adapter
from microplane.methods import make_method
from microplane.methods.method import attach_method, load_state, state_of
from microplane.models.files.load import load_model, save_model
from microplane.models.heads import add_head, ensure_head, task_scores
from microplane.nn.rows import Rows
from microplane.objectives import HEAD_OBJECTIVES
from microplane.objectives.regression import Regression
from microplane.training.numbers import Numbers, with_unit
from tests.labels import encoder_folder, write
from tests.resuming import assert_killed_it_goes_on_to_the_same_bytes
from tests.runs.test_seq2seq import pair_folder
from tests.tiny import save_tiny_folder, tiny_encoder

ROWS = Rows.of([[5, 6, 7], [8, 9]])
SETS = {
    "data.task": "regression",
    "train.steps": 120,
    "train.eval_every": 40,
    "train.threads": 1,
    "train.patience": 0,
    "model.dtype": "float32",
    "eval.rows": 4,
}


class Labels:
    """What `Numbers.of` asks of rows."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def labels(self, row):
        return np.array([self.values[row]], np.float32)


def sized(scale: float, middle: float, count: int = 120):
    """Texts that tell a number, `scale` apart around `middle`."""
    draw = random.Random(0)
    texts = [("bad", "poor", "fine", "good")[n % 4] for n in range(count)]
    values = [middle + scale * (n % 4 - 1.5) for n in range(count)]
    return [{"text": f"the film is {w} {draw.randrange(9)}", "score": v} for w, v in zip(texts, values, strict=True)]


@pytest.mark.parametrize(
    ("values", "mean", "unit"),
    [
        ([100_000, 200_000, 300_000, 400_000], 250_000, 131_072),
        ([1999, 2001, 2003, 2005], 2002, 2),
        ([0.0, 0.5, 1.0, 1.5], 0.75, 0.5),
        ([-1e-6, 1e-6], 0.0, 2.0**-20),
        ([7.0, 7.0], 7.0, 8.0),
        ([0.0, 0.0], 0.0, 1.0),
    ],
)
def test_the_unit_is_a_power_of_two_near_the_standard_deviation(values, mean, unit):
    found = Numbers.of(Labels(values))
    assert found.mean == pytest.approx(mean)
    assert found.unit == unit


def test_the_loss_counts_in_the_unit():
    scores, labels = torch.tensor([[100.0], [300.0]]), torch.tensor([164.0, 300.0])
    plain = HEAD_OBJECTIVES["regression"]
    assert plain.loss_of_scores(scores, labels) == 64.0**2
    own = with_unit(plain, Numbers(200.0, 64.0))
    assert own == Regression(unit=64.0)
    assert own.loss_of_scores(scores, labels) == 1.0
    other = HEAD_OBJECTIVES["classification"]
    assert with_unit(other, Numbers(0.0, 2.0)) is other


@pytest.mark.parametrize("method", ["lora", "full", "bitfit", "head-only"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_files_hold_the_unit_of_the_labels_to_the_bit(method, pooling, tmp_path):
    model = load_model(encoder_folder(tmp_path / "base"))
    head = add_head(model, "regression", ["value"], pooling)
    head.learn_in(1024.0, mean=5000.0)
    made = make_method(method)
    attach_method(made, model)
    model.eval()
    with torch.no_grad():
        said = task_scores(model, ROWS)
    assert said.mean() == pytest.approx(5000, rel=0.2)
    save_adapter(tmp_path / "adapter", model, made, {})
    again = load_model(tmp_path / "adapter" if made.whole_model else tmp_path / "base")
    if not made.whole_model:
        add_head(again, "regression", ["value"], pooling)
        attach_method(made, again)
        load_adapter(tmp_path / "adapter", again, made)
    assert again.task_head.unit == 1.0
    assert torch.equal(task_scores(again.eval(), ROWS), said)
    kept = {name: tensor.clone() for name, tensor in state_of(made, model).items()}
    with torch.no_grad():
        for parameter in head.out.parameters():
            parameter.zero_()
    load_state(made, model, kept)  # back into the head that learns in its unit
    with torch.no_grad():
        assert torch.equal(task_scores(model, ROWS), said)


def test_a_head_of_the_models_own_says_what_it_said():
    model = tiny_encoder().eval()
    head = add_head(model, "regression", ["LABEL_0"], "cls")
    before = task_scores(model, ROWS)
    assert ensure_head(model, "regression", [], "auto", 0).startswith("head      the model's own")
    assert model.task_head is head
    head.learn_in(4096.0)
    assert torch.equal(task_scores(model, ROWS), before)
    assert head.out.weight.abs().max() < 1e-3


def test_a_folder_is_written_in_the_unit_of_the_labels(tmp_path):
    model = tiny_encoder("roberta").eval()
    add_head(model, "regression", ["value"], "cls").learn_in(256.0, mean=1000.0)
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(theirs(ids).logits[0], task_scores(model, Rows.of([[5, 6, 7]]))[0], rtol=1e-5, atol=0.01)


KINDS = {
    "encoder": (lambda place: encoder_folder(place), "lora", 3e-3),
    "encoder, full": (lambda place: encoder_folder(place), "full", 3e-3),
    "decoder": (lambda place: save_tiny_folder(place), "full", 3e-3),
    "pairs": (lambda place: pair_folder(place), "full", 3e-3),
}


@pytest.mark.parametrize(
    ("kind", "scale", "middle"),
    [
        ("encoder", 80_000.0, 250_000.0),
        ("decoder", 80_000.0, 250_000.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("encoder, full", 80_000.0, 250_000.0),
                ("pairs", 80_000.0, 250_000.0),
                ("encoder", 2.0, 2010.0),
                ("encoder", 1e-5, 0.0),
                ("decoder", 2.0, -40.0),
            )
        ),
    ],
)
def test_numbers_of_any_size_are_learnt_and_leave_in_their_own_unit(kind, scale, middle, tmp_path):
    make, method, rate = KINDS[kind]
    data = write(tmp_path / "rows.jsonl", sized(scale, middle))
    sets = SETS | {"runs": str(tmp_path / "runs"), "train.lr": rate}
    run = microplane.train(make(tmp_path / "model"), data, method=method, set=sets)
    assert all(check["passed"] in (True, None) for check in run.result["checks"]), run.result["checks"]
    spread = scale * math.sqrt(1.25)
    assert run.metrics["after"]["rmse"] < 0.4 * spread
    assert run.metrics["before"]["rmse"] < 4 * spread  # it begins at the mean
    assert run.metrics["after"]["loss"] == pytest.approx(run.metrics["after"]["rmse"] ** 2, rel=1e-4)
    assert run.result["train"]["validation_loss"] < 0.2
    low, high = (one.values[0] for one in run.load().classify(["the film is bad 1", "the film is good 1"]))
    assert low == pytest.approx(middle - 1.5 * scale, abs=0.6 * scale)
    assert high == pytest.approx(middle + 1.5 * scale, abs=0.6 * scale)
    merged = merge(run.folder, tmp_path / "merged", torch.float32)
    assert merged.difference <= 1e-4 * max(1.0, abs(middle) + 2 * scale)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([run.load().tokenizer.encode_pair("the film is good 1").ids])
    with torch.no_grad():
        assert theirs(ids).logits.item() == pytest.approx(high, abs=1e-3 * max(scale, abs(high)))
    if method == "lora":
        fresh = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1)
        opened = peft.PeftModel.from_pretrained(fresh, run.folder / "adapter").eval()
        with torch.no_grad():
            assert opened(ids).logits.item() == pytest.approx(high, abs=1e-3 * max(scale, abs(high)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_on_large_numbers_goes_on_to_the_same_bytes(method, tmp_path, monkeypatch):
    model, data = encoder_folder(tmp_path / "model"), write(tmp_path / "rows.jsonl", sized(8e4, 2.5e5))
    sets = SETS | {"runs": str(tmp_path / "runs"), "train.steps": 24, "train.eval_every": 8}

    def begin(name):
        return microplane.train(model, data, method=method, set=sets | {"name": name})

    weights = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert_killed_it_goes_on_to_the_same_bytes(begin, weights, monkeypatch)


@pytest.mark.slow
def test_a_run_goes_on_from_an_adapter_and_from_a_folder_that_say_large_numbers(tmp_path):
    model, data = encoder_folder(tmp_path / "model"), write(tmp_path / "rows.jsonl", sized(8e4, 2.5e5))
    sets = SETS | {"runs": str(tmp_path / "runs"), "train.lr": 1e-2}
    first = microplane.train(model, data, method="lora", set=sets)
    reached = first.result["train"]["validation_loss"]
    few = sets | {"train.steps": 2, "train.lr": 1e-6}
    again = microplane.train(model, data, set=few | {"model.adapter": str(first.folder)})
    assert again.result["train"]["validation_loss"] == pytest.approx(reached, rel=0.01)
    merge(first.folder, tmp_path / "merged", torch.float32)
    whole = microplane.train(tmp_path / "merged", data, method="lora", set=few)
    assert whole.result["train"]["validation_loss"] == pytest.approx(reached, rel=0.05)
    assert whole.metrics["before"]["rmse"] == pytest.approx(first.metrics["after"]["rmse"], rel=0.02)


def test_answers_have_digits_enough_to_be_compared_by():
    said = HEAD_OBJECTIVES["regression"].line([248_913.0, 2019.4, 0.123456789, -3.0], [])
    assert [float(one) for one in said.split(",")] == pytest.approx([248_913.0, 2019.4, 0.123457, -3.0], rel=1e-5)
    assert "e" not in said
