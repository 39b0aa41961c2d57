"""All blocks as one compiled operation compute what they do one by one."""

from __future__ import annotations

import pytest
import torch

from microplane.methods import METHODS
from microplane.models import fused_step
from microplane.models.configs.decoder_families import SPECS
from microplane.models.families import family_of
from microplane.models.fused_step import FusedStep
from microplane.nn.ops import native
from microplane.nn.rows import Rows
from tests.tiny import CONFIGS, PAIR_CONFIGS

pytestmark = pytest.mark.skipif(native.library() is None, reason="nothing can be compiled here")

SHAPES = {name: SPECS[fields["architectures"][0]] for name, fields in CONFIGS.items()}
OTHER = [name for name, spec in SHAPES.items() if spec.fused or not spec.gated]  # with layers that it does not know
DECODERS = {
    name: fields | {"head_dim": 16, "hidden_size": 64, "intermediate_size": 80}
    for name, fields in CONFIGS.items()
    if name not in OTHER
}
PAIRS = {name: PAIR_CONFIGS[name] | {"d_kv": 16} for name in ("t5", "t5-v1.0")}
PROMPTS = [[5, 6, 7, 8, 9], [3], [11, 12, 13]]


def model_of(fields, dtype=torch.float32):
    model = family_of(fields).from_hf(fields).init_weights(3).requires_grad_(False).eval()
    return model.to(dtype)


def written(model, fused, steps=70, most=None):
    """Hidden states of tokens that are the same on both ways, past the first 64 cells of the cache; and the cache."""
    found = []
    with torch.inference_mode():
        cache, tokens = model.start_generation(PROMPTS)
        if not fused:
            cache.step = False
        for step in range(steps):
            found.append(model(Rows.of(tokens, starts=cache.lengths), cache))
            tokens = [[(7 * step + 3 * row) % 90 + 2] for row in range(len(tokens))]
            if step == 4:
                cache.select([2, 0, 2])
    return torch.cat(found), cache


def same(model, tolerance):
    one, cache = written(model, True)
    assert isinstance(cache.step, FusedStep)
    other, plain = written(model, False)
    assert cache.lengths == plain.lengths
    assert one.shape == other.shape
    largest = other.float().abs().amax()
    assert (one - other).float().abs().amax() < tolerance * largest


@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_in_float32(family):
    same(model_of((DECODERS | PAIRS)[family]), 1e-5)


@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "t5"])
def test_it_is_told_where_all_lies_only_where_something_moved(family, monkeypatch):
    told, place = [], FusedStep._place
    monkeypatch.setattr(FusedStep, "_place", lambda self, *given: told.append(1) or place(self, *given))
    written(model_of((DECODERS | PAIRS)[family]), True, steps=20)
    assert len(told) == 2  # at first, and when other rows were chosen


@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "t5"])
def test_in_bfloat16(family):
    same(model_of((DECODERS | PAIRS)[family], torch.bfloat16), 0.06)


@pytest.mark.parametrize("family", OTHER)
def test_blocks_of_another_kind_are_computed_one_by_one(family):
    model = model_of(CONFIGS[family])
    one, cache = written(model, True, steps=3)
    assert cache.step is False
    assert torch.equal(one, written(model, False, steps=3)[0])


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_that_is_a_low_rank_update_is_part_of_it(method):
    model = model_of(DECODERS["qwen2"])
    adapter = METHODS[method](rank=3, targets=("all",))
    adapter.attach(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    if method == "lora":
        same(model, 1e-5)
    else:
        one, cache = written(model, True, steps=3)
        assert cache.step is False
        assert torch.equal(one, written(model, False, steps=3)[0])


def test_who_looks_at_a_block_sees_it():
    model, seen = model_of(DECODERS["llama-tied"]), []
    model.layers[1].mlp.down.register_forward_hook(lambda *_: seen.append(1))
    written(model, True, steps=5)
    assert len(seen) == 5


def test_an_operation_that_disagrees_steps_aside(monkeypatch):
    told = []
    monkeypatch.setattr(fused_step, "notice", told.append)
    monkeypatch.setitem(fused_step.ACTIVATIONS, "silu", 2)
    assert not fused_step.agrees.__wrapped__()
    assert "left out" in told[0]
