"""LoRA that grows: growth leaves the function, raises the rank, is undone to the best, and is cut exactly."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers

from microplane.checkpoints.adapter import save_adapter
from microplane.config.knobs import TrainKnobs
from microplane.evaluation.evaluate import evaluate_loss
from microplane.inference.pipeline import load
from microplane.methods import make_method
from microplane.methods.adapted_linear import adapted_layers
from microplane.methods.lora_auto import GrowingLinear, GrowingLoRA, gains, grows, truncated
from microplane.methods.method import trainable
from microplane.nn.rows import Rows
from microplane.objectives.next_token import NextToken
from microplane.training.optim import make_optimizer, set_lr
from tests.tiny import copy_task, logits, save_tiny_folder, tiny
from tests.training.fitting import Killed, fit_next_token

TRAIN, HELD_OUT = copy_task(40), copy_task(8, seed=1)
KNOBS = {"name": "lora", "rank": "auto", "start_rank": 1, "max_rank": 4, "warmup": 3}
TRAIN_KNOBS = TrainKnobs(steps=24, batch_size=8, micro_tokens=32, lr=2e-2, eval_every=3, patience=0, seed=3)


def attached(**changes):
    method, model = make_method({**KNOBS, **changes}), tiny()
    torch.manual_seed(0)
    method.attach(model)
    return method, model


def run(folder, kill_at=None, resume=False, knobs=TRAIN_KNOBS, **changes):
    method, model = attached(**changes)

    def kill(record):
        return kill_at == record["step"] and "loss" in record

    given = {"kill": kill, "resume": resume, "measured": evaluate_loss}
    outcome = fit_next_token(folder, model, method, TRAIN, knobs, HELD_OUT, **given)
    return outcome, method, model


def history(*losses, grown=()):
    checks = [{"step": 3 * i, "validation_loss": loss, "train_loss": 1.0} for i, loss in enumerate(losses)]
    return [c | {"decision": "grown"} if i in grown else c for i, c in enumerate(checks)]


def grown_model():
    method, model = attached()
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    for tensor in method.state(model).values():
        tensor.data.normal_(0, 0.1)
    before = logits(model.eval(), HELD_OUT)
    said = method.after_validation(model, optimizer, history(1.0, 0.9), total=100)
    return method, model, optimizer, before, said


def test_growth_leaves_the_function_bit_for_bit_and_the_rank_of_the_update():
    method, model, _, before, said = grown_model()
    assert said == "rank 1 -> 2: rank 1 gained 10.0% of the validation loss"
    assert torch.equal(logits(model, HELD_OUT), before)
    for _, module in adapted_layers(model, GrowingLinear):
        assert module.rank == 2
        assert module.scale == method.scale
        assert torch.linalg.matrix_rank(module.delta()) == 1
        old, new = (pair.lora_A for pair in module.pairs)
        assert (old @ new.t()).abs().max() < 1e-5
        torch.testing.assert_close(torch.linalg.norm(new), torch.tensor(3**-0.5))


def test_the_old_pairs_keep_their_optimizer_state_and_the_new_ones_warm_up():
    method, model = attached()
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    for parameter in trainable(model).values():
        parameter.grad = torch.ones_like(parameter)
    method.step(model, optimizer, 0, 100)
    moments = {id(p): state["exp_avg"].clone() for p, state in optimizer.state.items()}
    method.after_validation(model, optimizer, history(1.0, 0.9), total=100)
    assert len(optimizer.param_groups) == 2
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trainable(model))
    assert all(torch.equal(optimizer.state[p]["exp_avg"], moments[id(p)]) for p in optimizer.param_groups[0]["params"])
    rates = []
    for step in range(3, 8):
        set_lr(optimizer, 0.5)
        method.step(model, optimizer, step, 100)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert [one for one, _ in rates] == [5e-3] * 5
    assert [other for _, other in rates] == pytest.approx([5e-3 / 3, 1e-2 / 3, 5e-3, 5e-3, 5e-3])


def test_all_pairs_are_merged_and_cut_with_one_scale():
    _, model, *_ = grown_model()
    method = make_method({**KNOBS, "energy": 1.0})
    for tensor in method.state(model).values():
        tensor.data.normal_(0, 0.2)
    before = logits(model, HELD_OUT)
    assert "rank 2 cut to 2..2" in method.finish(model, lambda: 1.0)
    torch.testing.assert_close(logits(model, HELD_OUT), before, atol=1e-4, rtol=1e-4)
    method.merge(model)
    torch.testing.assert_close(logits(model, HELD_OUT), before, atol=1e-4, rtol=1e-4)


def test_what_trains_besides_the_pairs_is_in_the_first_group():
    method, model, *_ = grown_model()
    head = model.norm.requires_grad_(True).weight
    first, second = method.param_groups(model, 1e-3)
    assert any(parameter is head for parameter in first["params"])
    grouped = [id(parameter) for group in (first, second) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in trainable(model).values())


def test_it_grows_while_that_pays():
    assert not grows(history(1.0), 0.1, 1)
    assert grows(history(1.0, 0.5), 0.1, 1)
    assert grows(history(1.0, 0.95), 0.1, 1)  # the first rank had little; the second is tried in any case
    assert not grows(history(1.0, 0.5), 0.1, 2)
    assert grows(history(1.0, 0.5, 0.4), 0.1, 2)
    assert not grows(history(1.0, 0.95, grown=[1]), 0.1, 1)  # just done
    assert grows(history(1.0, 0.8, 0.79, grown=[1]), 0.1, 1)  # one that did not pay
    assert not grows(history(1.0, 0.8, 0.79, 0.78, grown=[1, 2]), 0.1, 1)  # two
    assert grows(history(1.0, 0.95, 0.7, 0.69, grown=[1, 2]), 0.1, 1)  # the first paid
    assert grows(history(1.0, 0.95, 0.94, 0.5, grown=[1, 2]), 0.1, 1)  # the second paid


def test_what_a_rank_gained_is_over_the_best_before_it():
    assert gains(history(1.0)) == [0.0]
    assert gains(history(1.0, 0.5, 0.6, 0.4, 0.3, 0.33, grown=[2, 4])) == pytest.approx([0.5, 0.4, -0.1])
    assert gains(history(0.0, 0.0)) == [0.0]


def test_it_does_not_grow_at_the_end_nor_beyond_its_bounds():
    for changes, total in (({}, 6), ({"max_rank": 1}, 100)):
        method, model = attached(**changes)
        optimizer = make_optimizer(method, model, TrainKnobs())
        assert method.after_validation(model, optimizer, history(1.0, 0.9), total) is None
        assert len(optimizer.param_groups) == 1
    method, model = attached(start_rank=12, max_rank=64, targets=["k", "q"])
    method.after_validation(model, make_optimizer(method, model, TrainKnobs()), history(1.0, 0.9), 100)
    assert {module.rank for _, module in adapted_layers(model, GrowingLinear)} == {16, 24}  # k is 16 x 32


def test_the_cut_is_the_best_one():
    A, B = torch.randn(6, 30), torch.randn(20, 6)
    values = torch.linalg.svdvals(B @ A)
    for energy in (0.3, 0.6, 0.9, 0.99, 1.0):
        small_A, small_B = truncated(A, B, energy)
        k = len(small_A)
        error = torch.linalg.norm(B @ A - small_B @ small_A)
        torch.testing.assert_close(error, values[k:].square().sum().sqrt(), atol=1e-4, rtol=1e-4)
        share = values.square().cumsum(0) / values.square().sum()
        assert share[k - 1] >= energy - 1e-6
        assert k == 1 or share[k - 2] < energy
    assert len(truncated(torch.cat([A, A]), torch.cat([B, B], 1), 1.0)[0]) == 6
    assert truncated(A, torch.zeros(20, 6), 0.9)[0].shape == (1, 30)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growing")
    return folder, *run(folder)


def written(folder):
    return (folder / "metrics.jsonl").read_bytes(), (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_grows_tells_its_story_and_keeps_the_best(straight):
    folder, outcome, method, model = straight
    assert [d["decision"].split(":")[0] for d in outcome.decisions[:-1]] == ["rank 1 -> 2", "rank 2 -> 4"]
    assert outcome.decisions[-1]["decision"].startswith("best weights taken, rank ")
    assert all(len(module.pairs) == 1 for _, module in adapted_layers(model, GrowingLinear))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [r["validation_loss"] for r in records if "validation_loss" in r]
    assert sum("decision" in r for r in records) == 2
    assert outcome.validation_loss <= min(losses) * (1 + method.gain / 2)
    assert outcome.validation_loss == evaluate_loss(NextToken(), model, HELD_OUT, 64)
    assert outcome.moved == outcome.tensors == 28 * 3


@pytest.mark.parametrize("kill_at", [4, 8, 11, 16, 24])
def test_a_resume_amid_growth_is_bitwise(tmp_path, straight, kill_at):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    resumed, _, _ = run(tmp_path, resume=True)
    assert written(tmp_path) == written(straight[0])
    assert resumed.decisions == straight[1].decisions
    again, _, _ = run(tmp_path, resume=True)  # of an ended run: nothing changes
    assert again.decisions == straight[1].decisions
    assert written(tmp_path) == written(straight[0])


def test_growth_gives_patience_back(tmp_path):
    knobs = TRAIN_KNOBS.model_copy(update={"patience": 1, "lr": 1e-3})
    outcome, _, _ = run(tmp_path, knobs=knobs, gain=0.0, warmup=1)
    grown = [d["step"] for d in outcome.decisions[:-1]]
    assert grown[:1] == [3]
    assert outcome.totals.step >= grown[-1] + 3


def test_a_cut_that_costs_too_much_is_not_made():
    method, model = attached(energy=0.01, start_rank=3)
    for tensor in method.state(model).values():
        tensor.data.normal_(0, 0.3)
    losses = iter([1.0, 2.0])
    before = logits(model.eval(), HELD_OUT)
    said = method.finish(model, lambda: next(losses))
    assert "all that is not zero" in said
    assert {module.rank for _, module in adapted_layers(model, GrowingLinear)} == {3}
    torch.testing.assert_close(logits(model, HELD_OUT), before, atol=1e-4, rtol=1e-4)


def test_peft_opens_it(tmp_path):
    base = save_tiny_folder(tmp_path / "base")
    method, model = make_method(KNOBS), load(base, dtype="float32").model
    method.attach(model)
    for number, (_, module) in enumerate(adapted_layers(model, GrowingLinear)):
        module.reshape([1 + number % 3])
    for tensor in method.state(model).values():
        tensor.data.normal_(0, 0.3)
    save_adapter(tmp_path / "adapter", model, method, {"base": str(base)})
    reference = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    opened = peft.PeftModel.from_pretrained(reference.eval(), tmp_path / "adapter").eval()
    ids = [5, 9, 77, 31]
    with torch.no_grad():
        ours, theirs = model.logits(model(Rows.of([ids]))), opened(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_auto_is_a_rank_of_lora():
    assert isinstance(make_method({"name": "lora", "rank": "auto"}), GrowingLoRA)
    assert make_method("lora-auto") == make_method({"name": "lora", "rank": "auto"})


def test_what_peft_could_open_before_a_growth_is_not_left_beside_what_it_cannot(tmp_path):
    method, model = attached()
    save_adapter(tmp_path, model, method, {})
    assert (tmp_path / "adapter_config.json").is_file()
    for number, (_, module) in enumerate(adapted_layers(model, GrowingLinear)):
        module.grow(2, born=3, seed=number)
    save_adapter(tmp_path, model, method, {})
    assert not (tmp_path / "adapter_config.json").exists()
