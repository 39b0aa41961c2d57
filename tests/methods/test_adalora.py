"""AdaLoRA: its schedule, its choice of directions, and what is left of it at the end."""

from __future__ import annotations

import pytest
import torch

from microplane.checkpoints.adapter import load_adapter, read_method, save_adapter
from microplane.config.knobs import TrainKnobs
from microplane.errors import ConfigError, TrainingError
from microplane.evaluation.evaluate import evaluate_loss
from microplane.methods import make_method
from microplane.methods.adalora import AdaLoRALinear, Schedule, choose
from microplane.methods.adapted_linear import adapted_layers
from microplane.objectives.next_token import NextToken
from microplane.training.loop import fit
from microplane.training.optim import make_optimizer
from microplane.training.resume import load_checkpoint, save_checkpoint
from tests.tiny import copy_task, logits, tiny

DATA = copy_task(16)
KNOBS = {"name": "adalora", "rank": 2, "initial_rank": 3, "interval": 2, "warm_share": 0.2, "final_share": 0.4}


def attached(**changes):
    method, model = make_method({**KNOBS, **changes}), tiny()
    torch.manual_seed(0)
    method.attach(model)
    return method, model


def backward(model, method):
    batch = NextToken().collate(DATA, range(8))
    (NextToken().loss(model, batch) / len(batch.targets)).backward()
    penalty = method.penalty(model)
    if isinstance(penalty, torch.Tensor):
        penalty.backward()


def train(model, method, total, start=0, stop=None, optimizer=None):
    optimizer = optimizer or make_optimizer(method, model, TrainKnobs(lr=1e-2))
    used = []
    for step in range(start, total if stop is None else stop):
        model.train()
        backward(model, method)
        method.step(model, optimizer, step, total)
        optimizer.zero_grad()
        used.append(sum(int((m.lora_E != 0).sum()) for _, m in adapted_layers(model, AdaLoRALinear)))
    model.eval()
    return optimizer, used


def test_at_the_start_only_the_values_get_a_gradient():
    method, model = attached(orthogonality=0)
    backward(model, method)
    for _, module in adapted_layers(model, AdaLoRALinear):
        assert module.lora_E.grad.abs().min() > 0
        assert not module.lora_A.grad.any()
        assert not module.lora_B.grad.any()


def test_the_budget_starts_and_ends_where_it_should_and_never_rises():
    schedule = Schedule(start=96, end=64, warm=10, final=40, total=100)
    budgets = [schedule.budget(t) for t in range(1, 101)]
    assert budgets[:10] == [96] * 10
    assert schedule.budget(11) < 96
    assert schedule.budget(35) == int(32 * 0.5**3 + 64)
    assert budgets[59:] == [64] * 41
    assert budgets == sorted(budgets, reverse=True)


def test_the_lowest_scores_go():
    kept = choose([torch.tensor([5.0, 1.0, 3.0]), torch.tensor([2.0, 6.0, 4.0])], 4)
    assert [mask.tolist() for mask in kept] == [[True, False, True], [False, True, True]]
    assert all(mask.all() for mask in choose([torch.ones(3)], 3))


def test_importance_is_averaged_as_it_is_defined():
    module = AdaLoRALinear(torch.nn.Linear(4, 5), 2, 1.0, 0.0)
    module.lora_E.data.fill_(1)
    for grad in (1.0, 3.0):
        for parameter in (module.lora_A, module.lora_E, module.lora_B):
            parameter.grad = torch.full_like(parameter, grad)
        module.observe(0.8, 0.9)
    sensitivity, uncertainty = module.averages["lora_E"]
    first, second = 0.2 * 1, 0.8 * 0.2 + 0.2 * 3
    assert torch.allclose(sensitivity, torch.tensor(second))
    assert torch.allclose(uncertainty, torch.tensor(0.9 * 0.1 * (1 - first) + 0.1 * (3 - second)))
    parts = [s * u for s, u in (module.averages[n] for n in ("lora_A", "lora_E", "lora_B"))]
    assert torch.allclose(module.scores(), parts[1].view(-1) + parts[0].mean(1) + parts[2].mean(0))


def test_no_more_directions_are_used_than_the_budget_allows():
    method, model = attached()
    _, used = train(model, method, 20)
    schedule = method.schedule(14, 20)
    for t, count in enumerate(used, 1):
        if t > schedule.warm and (t % 2 == 0 or t >= schedule.settles):
            assert count == schedule.budget(t)
        if t < schedule.warm:
            assert count == 42
    assert used[-1] == 28
    assert len({len(m.lora_E) for _, m in adapted_layers(model, AdaLoRALinear)}) == 1  # masked, as long as it trains


def test_the_penalty_is_zero_for_orthonormal_factors_and_the_mean_norm_otherwise():
    method, model = attached(orthogonality=0.5)
    for _, module in adapted_layers(model, AdaLoRALinear):
        torch.nn.init.orthogonal_(module.lora_A)
        torch.nn.init.orthogonal_(module.lora_B)
    assert method.penalty(model).item() < 1e-5
    for _, module in adapted_layers(model, AdaLoRALinear):
        module.lora_A.data.zero_()  # |0 - I| = sqrt 3
    assert abs(method.penalty(model).item() - 0.5 * 3**0.5 / 2) < 1e-5


def test_at_the_end_pruned_directions_are_removed_and_the_adapter_is_smaller(tmp_path):
    method, model = attached()
    before = save_adapter(tmp_path / "before", model, method, {})
    train(model, method, 20)
    masked = logits(model, DATA)
    said = method.finish(model, lambda: 0.0)
    assert said.startswith("removed 14 of 42 directions; ranks from ")
    torch.testing.assert_close(logits(model, DATA), masked, atol=1e-5, rtol=1e-5)
    after = save_adapter(tmp_path / "after", model, method, {})
    assert after < before
    assert sum(len(module.lora_E) for _, module in adapted_layers(model, AdaLoRALinear)) == 28
    again, _ = read_method(tmp_path / "after")
    fresh = tiny()
    again.attach(fresh)
    load_adapter(tmp_path / "after", fresh, again)
    assert torch.equal(logits(fresh.eval(), DATA), logits(model, DATA))
    again.merge(fresh)
    torch.testing.assert_close(logits(fresh, DATA), masked, atol=1e-4, rtol=1e-4)


def test_the_scale_stays_that_of_the_initial_rank():
    method, model = attached(alpha=6)
    module = next(m for _, m in adapted_layers(model, AdaLoRALinear))
    module.lora_E.data[0] = 2
    expected = 2 * 6 / (3 + 1e-5) * torch.outer(module.lora_B[:, 0], module.lora_A[0])
    torch.testing.assert_close(module.delta(), expected)
    method.finish(model, lambda: 0.0)
    torch.testing.assert_close(module.delta(), expected)
    A, B = module.low_rank()
    torch.testing.assert_close(B @ A, expected)


@pytest.mark.parametrize("at", [3, 9, 13, 17])
def test_a_resume_in_every_phase_is_bitwise(tmp_path, at):
    method, straight = attached()
    train(straight, method, 20)
    method, model = attached()
    optimizer, _ = train(model, method, 20, stop=at)
    save_checkpoint(tmp_path, at, model, method, optimizer, {})
    method, model = attached()
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    load_checkpoint(tmp_path / f"step-{at:08d}", model, method, optimizer)
    train(model, method, 20, start=at, optimizer=optimizer)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_another_length_on_resume_is_refused(tmp_path):
    method, model = attached()
    optimizer, _ = train(model, method, 20, stop=5)
    save_checkpoint(tmp_path, 5, model, method, optimizer, {})
    method, model = attached()
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    load_checkpoint(tmp_path / "step-00000005", model, method, optimizer)
    with pytest.raises(TrainingError, match="begun for 20 steps and cannot go on for 30"):
        train(model, method, 30, start=5, optimizer=optimizer)


def test_too_short_a_run_is_refused():
    method, model = attached(final_share=0.7)
    with pytest.raises(TrainingError, match=r"the run has 2, .* lower method.final_share"):
        train(model, method, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 5}, "initial_rank = 3 must be at least rank = 5"),
        ({"warm_share": 0.6}, r"warm_share \+ final_share must be below 1"),
    ],
)
def test_knobs_that_leave_no_schedule_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_method({**KNOBS, **changes})


def test_an_early_stop_and_the_best_wait_for_the_final_phase(tmp_path):
    method, model = attached()
    losses = iter([5.0, 1.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.5, 3.5, 3.5, 3.5])
    saved, answers = [], []

    def save_best(step, loss):
        saved.append((step, save_adapter(tmp_path / "adapter", model, method, {})))
        answers.append(logits(model.eval(), DATA))

    outcome = fit(
        model,
        method,
        DATA,
        TrainKnobs(steps=20, batch_size=4, eval_every=2, patience=2, lr=1e-2),
        tmp_path,
        objective=NextToken(),
        validate=lambda m: next(losses, evaluate_loss(NextToken(), m, DATA, 64)),
        save_best=save_best,
        identity={},
    )
    assert [step for step, _ in saved] == [0, 2, 12, 12]  # 12 is where the final phase begins; then it is finished
    assert outcome.best_step == 12
    assert outcome.stopped_early
    assert outcome.totals.step == 16
    assert saved[-1][1] < saved[-2][1]
    torch.testing.assert_close(answers[-1], answers[-2], atol=1e-5, rtol=1e-5)  # the best weights, not the last
    assert outcome.decisions[-1]["decision"].startswith("removed 14 of 42")
