"""NF4 against bitsandbytes, byte for byte, and against its own plain reference."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import pytest
import torch

from microplane.nn.ops import nf4

FORMATS = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(64, 64), (96, 576), (300, 448), (8, 8192), (256, 1024), (100, 33), (3, 5), (1, 1)]


def random(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(shape[0], 1, generator=generator).exp() * 0.03
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


def theirs(weight):
    return bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")


def test_the_tables_are_bitsandbytes():
    assert torch.equal(nf4.levels(), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(nf4.dynamic_map(), bnb.create_dynamic_map(signed=True))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "half zero", "on a grid", "all zero"])
def test_every_byte_is_bitsandbytes(shape, dtype, kind):
    weight = random(shape, dtype, seed=sum(shape))
    if kind == "half zero":
        weight[: -(-len(weight) // 2)] = 0
    if kind == "on a grid":  # many ties
        weight = ((weight * 100).round() / 100).to(dtype)
    if kind == "all zero":
        weight.zero_()
    packed, state = theirs(weight)
    ours = nf4.quantise(weight)
    assert torch.equal(ours.codes, packed.view(-1))
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(ours.nested_absmax, state.state2.absmax)
    assert torch.equal(ours.offset, state.offset)
    for out in FORMATS:
        state.dtype = out
        assert torch.equal(nf4.dequantise(ours, shape, out), bnb.dequantize_4bit(packed, state))


def test_the_second_level_is_bitsandbytes_on_many_blocks():
    weight = random((512, 4096), seed=5)  # 32,768 absmax
    assert torch.equal(nf4.quantise(weight).absmax, theirs(weight)[1].absmax)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_chunks_agree_with_the_reference(dtype, monkeypatch):
    monkeypatch.setattr(nf4, "CHUNK", 4096)
    weight = random((123, 117), dtype)
    ours = nf4.quantise(weight)
    assert torch.equal(nf4.dequantise(ours, weight.shape, dtype), nf4.dequantise_reference(ours, weight.shape, dtype))
    monkeypatch.undo()
    assert all(torch.equal(one, other) for one, other in zip(ours, nf4.quantise(weight), strict=True))


def test_nearest_level_agrees_with_the_reference_also_on_the_midpoints():
    edges = (nf4.levels()[:-1] + nf4.levels()[1:]) / 2
    beside = torch.nextafter(edges, torch.tensor(2.0)), torch.nextafter(edges, torch.tensor(-2.0))
    scaled = torch.cat([edges, *beside, nf4.levels(), torch.rand(10_000) * 2 - 1])
    assert torch.equal(nf4.nearest_level(scaled), nf4.nearest_level_reference(scaled))
    assert nf4.nearest_level(edges).tolist() == list(range(15))


def test_numbers_on_the_grid_come_back_as_they_were():
    # Of equal absmax in all blocks, the offset holds it exactly.
    weight = nf4.levels().repeat(40).view(10, 64) * 0.75
    assert torch.equal(nf4.dequantise(nf4.quantise(weight), (10, 64)), weight)


def test_no_number_is_off_by_more_than_half_the_widest_gap():
    weight = random((256, 256))
    packed = nf4.quantise(weight)
    absmax = nf4.dequantise_absmax(packed).repeat_interleave(64).view(256, 256)
    exact = weight.view(-1, 64).abs().amax(1).repeat_interleave(64).view(256, 256)
    error = (nf4.dequantise(packed, weight.shape) - weight).abs()
    half_gap = (nf4.LEVELS[1] - nf4.LEVELS[0]) / 2
    assert half_gap == pytest.approx(0.15190, abs=1e-5)
    assert (error <= half_gap * exact + (absmax - exact).abs() + 1e-7).all()
    single = nf4.levels()[nf4.nearest_level(weight / exact).long()] * exact  # without the second level
    assert (single - weight).abs().div(exact).max() <= half_gap + 1e-6


def test_a_block_of_zeros_stays_zeros():
    weight = random((4, 64))
    weight[1] = 0
    back = nf4.dequantise(nf4.quantise(weight), (4, 64))
    assert (back[1] == 0).all()
    assert (back[[0, 2, 3]] != 0).any()


def test_it_takes_half_a_byte_and_an_eighth_of_a_bit_for_each_weight():
    n = 1024 * 1024
    parts = nf4.quantise(torch.ones(1024, 1024))
    assert [part.nbytes for part in parts] == [n // 2, n // 64, 4 * n // (64 * 256), 4]
    overhead = 8 * sum(part.nbytes for part in parts[1:3]) / n
    assert overhead == pytest.approx(0.126953, abs=1e-6)
