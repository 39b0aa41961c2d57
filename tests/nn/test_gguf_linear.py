"""Weights in a GGUF file's own blocks are what the gguf library says, and are multiplied as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch.nn import functional as F

from microplane.errors import ModelError
from microplane.nn.gguf_linear import GGUFLinear, dequantise, quantise, unpack

KINDS = ("Q4_0", "Q4_1", "Q8_0")


def blocks(kind, outputs=37, width=160):
    weight = np.random.default_rng(0).normal(size=(outputs, width)).astype(np.float32)
    raw = quantize(weight, GGMLQuantizationType[kind])
    return unpack(torch.from_numpy(raw), kind), torch.from_numpy(dequantize(raw, GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers(kind):
    parts, exact = blocks(kind)
    torch.testing.assert_close(dequantise(parts), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 7, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_products(kind, rows, dtype):
    parts, exact = blocks(kind)
    linear = GGUFLinear(160, 37, dtype)
    linear.set_parts(parts)
    x = torch.randn(rows, 160).to(dtype)
    x[-1, 5] = 300.0  # one that is much larger than the others
    wanted = F.linear(x.double(), exact.double())
    with torch.inference_mode():
        y = linear(x).double()
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5
    assert (y - wanted).abs().amax(1).lt(tolerance * wanted.abs().amax(1)).all()


def test_other_weights_are_rounded_to_8_bits():
    weight = torch.randn(5, 64)
    assert (dequantise(quantise(weight)) - weight).abs().amax() < weight.abs().amax() / 200
    assert torch.equal(dequantise(quantise(torch.zeros(2, 32))), torch.zeros(2, 32))
    with pytest.raises(ModelError, match="rows of 48 weights"):
        quantise(torch.ones(2, 48))
