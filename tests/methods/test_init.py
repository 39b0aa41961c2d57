"""What each start promises, how changes counted from a start are saved, and that runs with one resume to the bit."""

from __future__ import annotations

import pytest
import torch

from microplane.checkpoints.adapter import load_adapter, save_adapter
from microplane.config.knobs import TrainKnobs
from microplane.errors import ConfigError, TrainingError
from microplane.evaluation.evaluate import evaluate_loss
from microplane.methods import make_method
from microplane.methods.init.eva import Components, share_ranks
from microplane.methods.init.factors import loftq, lora_ga, olora, pissa, top_singular
from microplane.methods.init.gradients import weight_gradients
from microplane.methods.method import trainable
from microplane.models.contract import linears
from microplane.nn.quantised import QUANTISED
from microplane.objectives.next_token import NextToken
from microplane.training.init_from_data import init_from_data, sample_losses
from tests.methods.kit import DATA, attached, layers, loss, shake
from tests.tiny import copy_task, logits, tiny
from tests.training.fitting import Killed, fit_next_token

COUNTED = ("pissa", "olora", "lora_ga")  # the change is counted from the start


def matrix(out=40, wide=64, seed=0):
    return torch.randn(out, wide, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ the pairs


def test_pissa_leaves_all_but_the_largest_singular_values():
    W = matrix()
    A, B = pissa(W, 5, scale=0.5)
    values = torch.linalg.svdvals(W)
    rest = W - 0.5 * B @ A
    torch.testing.assert_close(torch.linalg.matrix_norm(rest, 2), values[5])
    torch.testing.assert_close(torch.linalg.svdvals(0.5 * B @ A)[:5], values[:5])
    torch.testing.assert_close(A.norm(dim=1), B.norm(dim=0))  # shared evenly


def test_olora_starts_with_orthonormal_columns_that_rebuild_the_weight():
    W = matrix()
    A, B = olora(W, 5, scale=0.5)
    torch.testing.assert_close(B.T @ B, torch.eye(5, dtype=W.dtype))
    A, B = olora(W, 40, scale=0.5)
    torch.testing.assert_close(B @ A, W)


def test_loftq_brings_the_quantised_weight_nearer():
    W = matrix()
    Q = (W * 2).round() / 2
    A, B = loftq(W, Q, 5, scale=0.5)
    values = torch.linalg.svdvals(W - Q)
    torch.testing.assert_close((W - Q - 0.5 * B @ A).norm(), values[5:].norm())
    assert (W - Q - 0.5 * B @ A).norm() < (W - Q).norm()


def test_lora_ga_takes_different_directions_of_the_gradient_and_the_authors_size():
    G = matrix()
    A, B = lora_ga(G, 5, gamma=9)
    U, _, Vh = torch.linalg.svd(G)
    size = 40**0.25 / 3
    torch.testing.assert_close(A.abs(), size * Vh[:5].abs())
    torch.testing.assert_close(B.abs(), size * U[:, 5:10].abs())


def test_random_subspaces_agree_with_the_exact_decomposition():
    U, _, V = torch.linalg.svd(matrix(300, 400), full_matrices=False)
    W = (U * torch.logspace(0, -30, 300, dtype=U.dtype)) @ V
    torch.manual_seed(0)
    left, values, right = top_singular(W, 4)  # 16 directions of 300
    torch.testing.assert_close(values, torch.logspace(0, -30, 300, dtype=U.dtype)[:4])
    torch.testing.assert_close((left * values) @ right.T, (U[:, :4] * values) @ V[:4], atol=1e-9, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ from data


def test_gradients_of_frozen_weights_are_autograds():
    _, model = attached(name="lora", rank=2, exact=True)
    losses = sample_losses(NextToken(), model, DATA, 12, 0, 40)
    assert len(losses) > 2
    caught = dict(weight_gradients(model, layers(model), losses))
    assert not any(parameter.grad is not None for parameter in model.parameters())
    _, twin = attached(name="full", exact=True)
    for part in sample_losses(NextToken(), twin, DATA, 12, 0, 40):
        part().backward()
    assert caught.keys() == layers(model).keys()
    for name, gradient in caught.items():
        torch.testing.assert_close(gradient, twin.get_submodule(name).weight.grad)


def test_gradients_in_several_goes_are_the_same(monkeypatch):
    from microplane.methods.init import gradients

    _, model = attached(name="lora", rank=2, exact=True)
    losses = sample_losses(NextToken(), model, DATA, 12, 0, 40)
    whole = dict(weight_gradients(model, layers(model), losses))
    monkeypatch.setattr(gradients, "AT_ONCE", 10_000)
    parts = dict(weight_gradients(model, layers(model), losses))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_components_of_batches_are_those_of_all_rows():
    rows = matrix(400, 12) * torch.logspace(0, -2, 12, dtype=torch.float64) + 3  # far from the origin
    known = Components(12)
    for batch in rows.split(80):
        known.add(batch, tau=0.99)
    centred = rows - rows.mean(0)
    _, values, Vh = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(known.values, values)
    torch.testing.assert_close((known.directions * Vh).sum(1).abs(), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(known.explained(), values.square() / centred.square().sum())
    assert not known.turned


def test_ranks_go_where_they_explain_most_and_their_sum_stays():
    explained = {
        "a": torch.tensor([0.9, 0.05, 0.01, 0.01]),
        "b": torch.tensor([0.3, 0.29, 0.28, 0.13]),
        "c": torch.tensor([0.001, 0.001, 0.001, 0.001]),
    }
    assert share_ranks(explained, 2) == {"a": 1, "b": 4, "c": 1}
    assert share_ranks(explained, 1) == {"a": 1, "b": 1, "c": 1}


def test_eva_starts_orthonormal_with_the_rank_budget_and_the_scale_as_they_were():
    method, model = attached(name="lora", rank=3, start="eva", eva_rho=2.0, start_rows=32)
    ranks = [len(layer.lora_A) for layer in layers(model).values()]
    assert sum(ranks) == 3 * len(ranks)
    assert max(ranks) <= 6
    assert len(set(ranks)) > 1
    for layer in layers(model).values():
        torch.testing.assert_close(layer.lora_A @ layer.lora_A.T, torch.eye(len(layer.lora_A)), atol=1e-5, rtol=0)
        assert not layer.lora_B.any()
        assert layer.scale == method.scale
    q, k = model.layers[0].attention.q.lora_A, model.layers[0].attention.k.lora_A
    assert torch.equal(q[:2], k[:2])  # one input, one decomposition
    assert torch.equal(logits(model, DATA), logits(tiny(), DATA))


def test_eva_says_when_it_sees_too_few_tokens():
    with pytest.raises(TrainingError, match=r"eva saw too few tokens at layers.0.*: it needs 24 in a batch"):
        attached(name="lora", rank=12, start="eva", start_rows=1)


# ------------------------------------------------------------------------------------------------ on a model


@pytest.mark.parametrize("start", COUNTED)
@pytest.mark.parametrize("name", ["lora", "rslora", "lora+", "dora"])
def test_the_function_is_unchanged_to_the_bit_and_the_pair_is_not_zero(name, start):
    _, model = attached(name=name, rank=3, start=start, start_rows=16)
    assert torch.equal(logits(model, DATA), logits(attached(name=name, rank=3)[1], DATA))
    torch.testing.assert_close(logits(model, DATA), logits(tiny(), DATA), atol=1e-5, rtol=1e-5)
    assert all(layer.lora_B.any() and layer.lora_A.any() for layer in layers(model).values())


@pytest.mark.parametrize("start", COUNTED)
def test_scalora_takes_the_start_off_its_base(start):
    """In float64 nearly to the bit. In float32 W - s B A + s B A rounds as its largest part does, and olora's start is
    eight times as large as W here: 1.6e-5 at logits up to 3.7, on a processor that fuses products and sums."""
    _, exact = attached(name="scalora", rank=3, start=start, start_rows=16, exact=True)
    torch.testing.assert_close(logits(exact, DATA), logits(tiny().double(), DATA), atol=1e-12, rtol=1e-12)
    _, model = attached(name="scalora", rank=3, start=start, start_rows=16)
    parts = [
        ((layer.weight - layer.base.weight).abs().max(), layer.base.weight.abs().max())
        for layer in layers(model).values()
    ]
    larger = max(1.0, *(float(part / weight) for part, weight in parts))
    torch.testing.assert_close(logits(model, DATA), logits(tiny(), DATA), atol=1e-5 * larger, rtol=1e-5)
    for layer in layers(model).values():
        assert layer.lora_A.any()
        assert layer.lora_B.any()
        torch.testing.assert_close(layer.delta(), torch.zeros_like(layer.delta()), atol=1e-6, rtol=0)
        torch.testing.assert_close(layer.weight, layer.base.weight - layer.scale * layer.lora_B @ layer.lora_A)


@pytest.mark.parametrize("start", COUNTED)
def test_adalora_takes_the_directions_of_a_start_and_not_its_size(start):
    _, model = attached(name="adalora", initial_rank=3, rank=2, start=start, start_rows=16)
    assert torch.equal(logits(model, DATA), logits(attached(name="adalora", initial_rank=3, rank=2)[1], DATA))
    pairs = layers(attached(name="lora", rank=3, start=start, start_rows=16)[1])
    for site, layer in layers(model).items():
        assert not layer.lora_E.any()
        pair = pairs[site]
        torch.testing.assert_close(layer.lora_A, pair.lora_A / pair.lora_A.norm(dim=1, keepdim=True))
        torch.testing.assert_close(layer.lora_B, pair.lora_B / pair.lora_B.norm(dim=0, keepdim=True))


def test_adalora_starts_with_orthonormal_inputs_of_eva_and_the_ranks_it_found():
    _, model = attached(name="adalora", initial_rank=4, rank=2, start="eva", start_rows=32)
    torch.testing.assert_close(logits(model, DATA), logits(tiny(), DATA), atol=1e-5, rtol=1e-5)
    for layer in layers(model).values():
        rank = len(layer.lora_E)
        assert layer.lora_A.shape[0] == layer.lora_B.shape[1] == rank
        torch.testing.assert_close(layer.lora_A @ layer.lora_A.t(), torch.eye(rank), atol=1e-4, rtol=0)
        assert layer.lora_B.any()
        assert not layer.lora_E.any()


@pytest.mark.parametrize("start", COUNTED)
def test_at_first_gradients_are_those_of_a_pair_on_the_rest_of_the_weight(start):
    _, model = attached(name="lora", rank=3, start=start, start_rows=16, exact=True)
    loss(model).backward()
    twin = tiny().double()
    with torch.no_grad():  # as the papers have it: the start is taken off the weight
        for name, layer in layers(model).items():
            twin.get_submodule(name).weight.data -= layer.scale * layer.lora_B @ layer.lora_A
    make_method({"name": "lora", "rank": 3}).attach(twin)
    twin.double()
    for name, layer in layers(twin).items():
        layer.set_factors(layers(model)[name].lora_A, layers(model)[name].lora_B, relative_to_start=False)
    loss(twin).backward()
    for name, layer in layers(twin).items():
        torch.testing.assert_close(layers(model)[name].lora_A.grad, layer.lora_A.grad)
        torch.testing.assert_close(layers(model)[name].lora_B.grad, layer.lora_B.grad)


@pytest.mark.parametrize("start", COUNTED)
def test_it_is_saved_as_a_pair_of_twice_the_rank_on_the_original_base(start, tmp_path):
    method, model = attached(name="lora", rank=3, start=start, start_rows=16)
    shake(model)
    save_adapter(tmp_path, model, method, {})
    plain = make_method({"name": "lora", "rank": 6, "alpha": method.scale * 6})
    fresh = tiny()
    plain.attach(fresh)
    load_adapter(tmp_path, fresh, plain)
    assert torch.equal(logits(model, DATA), logits(fresh, DATA))
    for name, layer in layers(model).items():
        torch.testing.assert_close(
            layers(fresh)[name].delta(),
            layer.scale * (layer.lora_B @ layer.lora_A - layer.start_B @ layer.start_A),
            atol=1e-5,
            rtol=1e-4,
        )


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_loftq_on_a_quantised_base_is_nearer_to_the_original(name, kind):
    original, quantised = tiny(), tiny()
    stored = {f"model.{n}": tensor for n, tensor in original.state_dict().items()}
    names = {ours: f"model.{ours}" for ours in original.state_dict()}
    quantised.hf_names = lambda: names
    for site in linears(quantised).values():
        if site.layer is not None:
            site.replace(QUANTISED[kind].of(site.module.weight, site.module.bias, torch.float32))
    before = (logits(quantised, DATA) - logits(original, DATA)).norm()
    method = make_method({"name": name, "rank": 12, "start": "loftq"})
    method.attach(quantised)
    init_from_data(NextToken(), quantised, method, DATA, TrainKnobs(), stored)
    assert (logits(quantised, DATA) - logits(original, DATA)).norm() < 0.6 * before
    for site, layer in layers(quantised).items():
        W, Q = original.get_submodule(site).weight, layer.base.weight
        assert (W - Q - layer.delta()).norm() < (W - Q).norm()
        assert layer.start_A is None  # the adapter belongs to the quantised base as it is


def test_loftq_is_refused_where_nothing_is_quantised():
    with pytest.raises(ConfigError, match=r"start = loftq .*layers.0.attention.q is not quantised. Quantise the base"):
        attached(name="lora", rank=3, start="loftq")


@pytest.mark.parametrize(
    ("start", "rank", "most"), [("pissa", 17, 16), ("olora", 17, 16), ("lora_ga", 9, 8), ("eva", 33, 32)]
)
def test_a_rank_that_the_start_cannot_give_is_refused(start, rank, most):
    with pytest.raises(ConfigError, match=rf"rank = {rank} is too large for method.start = {start}: .* {most} dir"):
        attached(name="lora", rank=rank, start=start, prepare=False)
    with pytest.raises(ConfigError, match=rf"method.initial_rank = {rank} is too large for method.start = {start}"):
        attached(name="adalora", initial_rank=rank, rank=2, start=start, prepare=False)


# ------------------------------------------------------------------------------------------------ resume


def run(folder, knobs, kill_at=None, resume=False):
    train, held_out = copy_task(40), copy_task(8, seed=1)
    train_knobs = TrainKnobs(epochs=2, batch_size=8, micro_tokens=64, lr=1e-2, eval_every=3, patience=0)
    method, model = attached(prepare=False, **knobs)
    if not resume:
        method.init_from_data(model, sample_losses(NextToken(), model, train, method.init_rows, 0, 64))

    def kill(record):
        return record["step"] == kill_at and "loss" in record

    given = {"kill": kill, "resume": resume, "measured": evaluate_loss}
    fit_next_token(folder, model, method, train, train_knobs, held_out, **given)
    return method, model


@pytest.mark.parametrize(
    "knobs",
    [
        {"name": "lora", "rank": 3, "start": "pissa", "dropout": 0.1},
        {"name": "lora+", "rank": 3, "start": "lora_ga", "start_rows": 8},
        {"name": "lora", "rank": 3, "start": "eva", "start_rows": 32},
        {"name": "dora", "rank": 3, "start": "olora"},
        {"name": "scalora", "rank": 3, "start": "pissa", "interval": 2},
        {"name": "scalora", "rank": 3, "start": "eva", "start_rows": 32, "interval": 2},
        {"name": "adalora", "initial_rank": 4, "rank": 2, "start": "pissa", "interval": 2},
        {"name": "adalora", "initial_rank": 4, "rank": 2, "start": "eva", "start_rows": 32, "interval": 2},
    ],
    ids=lambda knobs: f"{knobs['name']}-{knobs['start']}",
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, knobs):
    method, straight = run(tmp_path / "straight", knobs)
    with pytest.raises(Killed):
        run(tmp_path / "killed", knobs, kill_at=5)
    _, resumed = run(tmp_path / "killed", knobs, resume=True)
    assert all(
        torch.equal(a, b) for a, b in zip(trainable(straight).values(), trainable(resumed).values(), strict=True)
    )
    own = ["adapter/adapter_config.json"] if method.peft_type else []  # which the others do not write
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors", *own):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_small_changes_of_a_large_start_survive_bfloat16():
    """Differences are rounded as differences: a step far below bfloat16's spacing of the factors still counts."""
    _, model = attached(name="lora", rank=3, start="pissa")
    layer = model.layers[0].attention.q
    layer.lora_A.data += layer.lora_A.abs().mean() * 2.0**-12
    wanted = layer.delta()
    A, B = (factor.bfloat16().float() for factor in layer.factors())
    assert (layer.scale * B @ A - wanted).norm() < 0.02 * wanted.norm()
    naive = layer.lora_A.bfloat16().float() - layer.start_A.bfloat16().float()
    assert (layer.scale * layer.start_B @ naive - wanted).norm() > 0.5 * wanted.norm()
