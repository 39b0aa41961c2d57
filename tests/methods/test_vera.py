"""VeRA's invariants: one pair of matrices for all layers, from a seed, never trained."""

from __future__ import annotations

import pytest
import torch

from microplane.checkpoints.adapter import load_adapter, save_adapter
from microplane.methods.method import trainable, trainable_parameters
from tests.methods.kit import DATA, attached, layers, loss, shake
from tests.tiny import logits, tiny


def test_vectors_train_and_all_layers_share_the_matrices():
    method, model = attached(name="vera", rank=7)
    assert trainable_parameters(model) == sum(layer.out_features + 7 for layer in layers(model).values())
    assert len({id(layer.shared) for layer in layers(model).values()}) == 1
    shared = next(iter(layers(model).values())).shared
    assert shared.A.shape == (7, 48)
    assert shared.B.shape == (48, 7)
    before = shared.A.clone(), shared.B.clone()
    optimizer = torch.optim.AdamW(method.param_groups(model, 1e-2))
    for _ in range(3):
        loss(model).backward()
        optimizer.step()
    assert torch.equal(shared.A, before[0])
    assert torch.equal(shared.B, before[1])


def test_at_first_only_the_outer_vector_has_a_gradient():
    _, model = attached(name="vera", rank=7)
    loss(model).backward()
    for layer in layers(model).values():
        assert layer.vera_lambda_b.grad.any()
        assert not layer.vera_lambda_d.grad.any()


def test_the_change_is_the_product_of_the_four_and_merges():
    method, model = attached(name="vera", rank=7, exact=True)
    shake(model, 0.5)
    for layer in layers(model).values():
        A, B = layer.shared.A[:, : layer.in_features], layer.shared.B[: layer.out_features]
        torch.testing.assert_close(
            layer.delta(), torch.diag(layer.vera_lambda_b) @ B @ torch.diag(layer.vera_lambda_d) @ A
        )
    before = logits(model, DATA)
    assert not torch.allclose(before, logits(tiny().double(), DATA), atol=1e-3)
    method.merge(model)
    torch.testing.assert_close(logits(model, DATA), before, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("save", [True, False])
def test_matrices_are_saved_or_made_again_from_the_seed(tmp_path, save):
    method, model = attached(name="vera", rank=5, seed=3, save_projections=save)
    shake(model, 0.5)
    save_adapter(tmp_path, model, method, {})
    saved = sum(tensor.numel() for tensor in method.state(model).values())
    assert saved == trainable_parameters(model) + (5 * (48 + 48) if save else 0)
    again, fresh = attached(name="vera", rank=5, seed=3, save_projections=save)
    load_adapter(tmp_path, fresh, again)
    assert torch.equal(logits(model, DATA), logits(fresh, DATA))


def test_another_seed_is_another_method(tmp_path):
    one, other = (attached(name="vera", rank=5, seed=seed, save_projections=False)[1] for seed in (0, 1))
    for model in (one, other):
        for parameter in trainable(model).values():
            parameter.data.fill_(0.2)
    assert not torch.allclose(logits(one, DATA), logits(other, DATA), atol=1e-2)


def test_saved_matrices_win_over_the_seed(tmp_path):
    method, model = attached(name="vera", rank=5, seed=3)
    shake(model, 0.5)
    save_adapter(tmp_path, model, method, {})
    other, fresh = attached(name="vera", rank=5, seed=4)
    load_adapter(tmp_path, fresh, other)
    assert torch.equal(logits(model, DATA), logits(fresh, DATA))
