"""Adafactor: against transformers' one, torch's one, and the paper's formulas as they read; resume; refusals."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from microplane.checkpoints.tensors import read_tensors, save_tensors
from microplane.config.knobs import RunKnobs, TrainKnobs
from microplane.errors import ConfigError
from microplane.methods import Full, LoRA, make_method
from microplane.runs.check_knobs import check_knobs
from microplane.training.adafactor import Adafactor, factored_dims
from microplane.training.optim import make_optimizer, peak_lr
from microplane.training.resume import load_optimizer, optimizer_tensors
from tests.tiny import tiny, tiny_encoder

SHAPES = [(6, 9), (9, 4), (7,), (1, 5)]


def weights(seed=0, dtype=torch.float64, shapes=SHAPES):
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, dtype=dtype) * 0.3) for shape in shapes]


def train(optimizer, tensors, steps=6, start=0):
    """Steps with gradients of very different sizes, so that clipping bites in some and not in others."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for tensor in tensors:
            grad = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.grad = (grad * 10 ** (step % 3 - 1)).to(tensor.dtype)
        optimizer.step()


# Not with both: transformers multiplies the weight decay by the tensor's size too; t5x, torch and this one do not.
@pytest.mark.parametrize(("scale_parameter", "decay"), [(False, 0.0), (False, 0.1), (True, 0.0)])
def test_it_is_transformers_adafactor(scale_parameter, decay):
    theirs_of = pytest.importorskip("transformers.optimization").Adafactor
    ours, theirs = weights(), weights()
    train(Adafactor(ours, 1e-2, scale_parameter=scale_parameter, weight_decay=decay, min_factored=1), ours)
    knobs = {"relative_step": False, "warmup_init": False, "scale_parameter": scale_parameter, "weight_decay": decay}
    train(theirs_of(theirs, lr=1e-2, **knobs), theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_it_is_torchs_adafactor_with_scaled_parameters_and_decay():
    ours, theirs = weights(), weights()  # torch's rate is at most 1 / sqrt(t), which 1e-2 never reaches
    train(Adafactor(ours, 1e-2, scale_parameter=True, weight_decay=0.1, min_factored=1), ours)
    train(torch.optim.Adafactor(theirs, lr=1e-2, eps=(1e-30, 1e-3), weight_decay=0.1), theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def as_the_formulas_read(W, gradients, lr, scale_parameter, factored):
    """Algorithms 4 and 5 of arXiv 1804.04235 on a matrix, in numpy."""
    rms = lambda x: np.sqrt(np.mean(x**2))  # noqa: E731
    R, C, V = np.zeros(W.shape[0]), np.zeros(W.shape[1]), np.zeros(W.shape)
    for t, G in enumerate(gradients, start=1):
        beta2 = 1 - t**-0.8
        square = G**2 + 1e-30
        if factored:
            R = beta2 * R + (1 - beta2) * square.mean(1)
            C = beta2 * C + (1 - beta2) * square.mean(0)
            V = np.outer(R, C) / R.mean()
        else:
            V = beta2 * V + (1 - beta2) * square
        U = G / np.sqrt(V)
        U = U / max(1.0, rms(U) / 1.0)
        W = W - (lr * max(1e-3, rms(W)) if scale_parameter else lr) * U
    return W


@pytest.mark.parametrize("scale_parameter", [False, True])
@pytest.mark.parametrize(("shape", "factored"), [((128, 130), True), ((130, 128), True), ((127, 300), False)])
def test_it_is_the_paper_and_matrices_are_factored_from_128_on(shape, factored, scale_parameter):
    (weight,) = weights(shapes=[shape])
    start = weight.detach().numpy().copy()
    gradients = [np.random.default_rng(t).standard_normal(shape) * 3.0**t for t in range(4)]
    optimizer = Adafactor([weight], 0.05, scale_parameter=scale_parameter)
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    wanted = as_the_formulas_read(start, gradients, 0.05, scale_parameter, factored)
    np.testing.assert_allclose(weight.detach().numpy(), wanted, rtol=1e-6, atol=1e-9)
    held = sum(value.numel() for value in optimizer.state[weight].values())
    assert held == 1 + (sum(shape) if factored else shape[0] * shape[1])


def test_the_two_largest_dimensions_are_factored():
    assert factored_dims(torch.Size([4, 300, 200]), 128) == (2, 1)
    assert factored_dims(torch.Size([300, 2, 200]), 128) == (2, 0)
    assert factored_dims(torch.Size([300, 2, 100]), 128) is None
    assert factored_dims(torch.Size([300]), 1) is None


def test_a_stack_of_matrices_is_factored_matrix_by_matrix():
    (stack,) = weights(shapes=[(3, 5, 7)])
    single = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stack.grad = torch.randn(3, 5, 7, dtype=torch.float64)
    for matrix, grad in zip(single, stack.grad, strict=True):
        matrix.grad = grad.clone()
    Adafactor([stack], 1e-2, min_factored=5, clip=100.0).step()
    Adafactor(single, 1e-2, min_factored=5, clip=100.0).step()
    torch.testing.assert_close(stack, torch.stack(list(single)))


def test_a_step_is_no_larger_than_the_rate():
    (weight,) = weights(shapes=[(20, 20)])
    before = weight.detach().clone()
    optimizer = Adafactor([weight], 1e-2)
    weight.grad = torch.randn(20, 20, dtype=torch.float64)
    optimizer.step()
    weight.grad = weight.grad * 1e4  # the average hardly knows of it: unclipped this step would be many times too long
    middle = weight.detach().clone()
    optimizer.step()
    assert (middle - before).square().mean().sqrt().item() == pytest.approx(1e-2)
    assert (weight - middle).square().mean().sqrt().item() == pytest.approx(1e-2)


def test_with_scaled_parameters_a_tensor_of_zeros_hardly_moves():
    for scaled, moved in ((False, 1e-2), (True, 1e-5)):
        zeros = nn.Parameter(torch.zeros(30))
        zeros.grad = torch.randn(30)
        Adafactor([zeros], 1e-2, scale_parameter=scaled).step()
        assert zeros.abs().max().item() == pytest.approx(moved, rel=1e-3)


def test_bfloat16_weights_are_updated_in_float32_and_rounded_once():
    low, exact = weights(dtype=torch.bfloat16), weights(dtype=torch.bfloat16)
    exact = [nn.Parameter(weight.detach().float()) for weight in exact]
    optimizer, reference = Adafactor(low, 1e-2, min_factored=1), Adafactor(exact, 1e-2, min_factored=1)
    train(optimizer, low, 1)
    for weight, grad_of in zip(exact, low, strict=True):
        weight.grad = grad_of.grad.float()
    reference.step()
    for a, b in zip(low, exact, strict=True):
        assert torch.equal(a, b.bfloat16())
        assert all(value.dtype == torch.float32 for value in optimizer.state[a].values())


def test_a_gradient_of_zeros_changes_nothing():
    for shape in [(5,), (6, 6)]:
        weight = nn.Parameter(torch.ones(shape))
        weight.grad = torch.zeros(shape)
        Adafactor([weight], 1e-2, min_factored=1).step()
        assert torch.equal(weight, torch.ones(shape))


def test_saved_and_continued_it_is_the_same_to_the_bit(tmp_path):
    model = nn.ParameterDict({str(i): w for i, w in enumerate(weights(dtype=torch.float32))})
    straight = weights(dtype=torch.float32)
    train(Adafactor(straight, 1e-2, scale_parameter=True, min_factored=4), straight, 6)
    optimizer = Adafactor(model.values(), 1e-2, scale_parameter=True, min_factored=4)
    train(optimizer, list(model.values()), 3)
    save_tensors(tmp_path / "optimizer.safetensors", optimizer_tensors(model, optimizer))
    optimizer = Adafactor(model.values(), 1e-2, scale_parameter=True, min_factored=4)
    load_optimizer(model, optimizer, read_tensors(tmp_path / "optimizer.safetensors", ConfigError))
    train(optimizer, list(model.values()), 3, start=3)
    for a, b in zip(model.values(), straight, strict=True):
        assert torch.equal(a, b)


def attached(method):
    model = tiny()
    method.attach(model)
    return model


def test_the_knob_chooses_the_optimizer():
    method = make_method("full")
    assert isinstance(make_optimizer(method, attached(method), TrainKnobs()), torch.optim.AdamW)
    knobs = TrainKnobs(optimizer="adafactor", scale_parameter=True, weight_decay=0.2)
    group = make_optimizer(method, attached(method), knobs).param_groups[0]
    assert group["scale_parameter"]
    assert group["weight_decay"] == 0.2
    assert group["lr"] == group["peak_lr"] == 1e-3  # T5's
    model = tiny()
    assert peak_lr(method, model, TrainKnobs(optimizer="adafactor")) == Full.default_lr
    assert peak_lr(method, model, TrainKnobs(optimizer="adafactor", scale_parameter=True, lr=0.5)) == 0.5


def test_a_post_norm_model_takes_half_the_rate_of_adapters_and_as_a_whole():
    lora, knobs = make_method("lora"), TrainKnobs()
    assert peak_lr(lora, tiny_encoder("bert"), knobs) == lora.default_lr / 2
    assert peak_lr(lora, tiny_encoder("modernbert"), knobs) == peak_lr(lora, tiny(), knobs) == lora.default_lr
    full = make_method("full")
    assert peak_lr(full, tiny_encoder("bert"), knobs) == full.default_lr / 2
    assert peak_lr(full, tiny_encoder("modernbert"), knobs) == peak_lr(full, tiny(), knobs) == full.default_lr
    for name in ("head-only", "bitfit"):
        assert peak_lr(make_method(name), tiny_encoder("bert"), knobs) == make_method(name).default_lr


@pytest.mark.parametrize(
    ("method", "width", "post_norm", "expected"),
    [
        ("lora", 576, False, 2e-3),
        ("lora", 2048, False, 5.63e-4),
        ("lora", 4096, False, 2.81e-4),
        ("lora", 384, True, 1e-3),
        ("lora", 768, True, 5e-4),  # as LoRA's authors had it for RoBERTa-base
        ("lora", 64, True, 1e-3),
        ("full", 4096, False, 2.81e-5),
        ("full", 768, True, 5e-5),  # as BERT's authors had it
        ("last-n", 1152, False, 2.5e-4),
        ("bottleneck", 1152, False, 1.5e-3),
        ("ia3", 4096, False, 2e-2),
        ("vera", 4096, False, 1e-2),
        ("prefix", 4096, False, 5e-2),
        ("prompt", 768, True, 5e-2),
        ("norms", 4096, False, 3e-3),
        ("bitfit", 768, True, 1e-3),
        ("head-only", 1024, True, 2e-3),
    ],
)
def test_the_default_rate_of_matrices_falls_with_the_width(method, width, post_norm, expected):
    model = SimpleNamespace(post_norm=post_norm, config=SimpleNamespace(hidden_size=width))
    assert make_method(method).rate(model) == expected


def test_a_model_that_tells_no_width_takes_the_default():
    assert make_method("lora").rate(torch.nn.Linear(5000, 5000)) == 2e-3


def test_scaled_parameters_are_refused_for_adapters_and_for_adamw():
    method = LoRA()
    message = "lora trains tensors that begin at or near zero.*Set train.scale_parameter=false"
    with pytest.raises(ConfigError, match=message):
        check_knobs(RunKnobs(train=TrainKnobs(optimizer="adafactor", scale_parameter=True)), method)
    message = re.escape("train.optimizer = 'adamw'; set train.optimizer=adafactor, or train.scale_parameter=false")
    with pytest.raises(ConfigError, match=message):
        check_knobs(RunKnobs(train=TrainKnobs(scale_parameter=True)), make_method("full"))


def test_a_methods_own_choice_of_optimizers_is_respected():
    class Particular(LoRA):
        optimizers = ("adamw",)

    method = Particular()
    check_knobs(RunKnobs(), method)
    message = "train.optimizer = 'adafactor': the method lora works with adamw only"
    with pytest.raises(ConfigError, match=message):
        check_knobs(RunKnobs(train=TrainKnobs(optimizer="adafactor")), method)
