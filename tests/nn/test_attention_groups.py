"""Rows of unequal length go through attention in rectangles of similar ones: the same numbers, and no more memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from microplane.data.batch_plan import micro_batches
from microplane.device import CPU
from microplane.forecast.held import Held
from microplane.models import encoder
from microplane.models.families import family_of
from microplane.nn import attention, head_attention
from microplane.nn.attention import MaskSpec, attend, attend_to
from microplane.nn.attention_reference import attend_reference
from microplane.nn.relative import RelativeBias
from microplane.nn.rows import Pairs, Rows
from tests.tiny import BERT, CONFIGS, ENCODER_CONFIGS, LLAMA, MARIAN, T5_SMALL, tiny, tiny_encoder, tiny_pairs

LENGTHS = (40, 3, 2, 17, 1, 5, 5, 5, 30, 2)


@pytest.fixture
def split(monkeypatch):
    """Every rectangle holds rows of similar length, however small it is."""
    monkeypatch.setattr(attention, "SMALL", 0)


def leaves(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def gradients(y, inputs):
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad((y * weights).sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("kept", "by_torch"), [(head_attention.KEPT, 1024), (256, 1024), (256, 16)])
def test_groups_change_no_number(split, monkeypatch, causal, window, softcap, biased, kept, by_torch):
    monkeypatch.setattr(head_attention, "KEPT", kept)
    monkeypatch.setattr(head_attention, "BY_TORCH", {torch.float64: by_torch**2})
    rows = Rows.of([[1] * n for n in LENGTHS])
    spec = MaskSpec(rows, window=window, causal=causal)
    assert len(spec.groups) > 3
    q, k, v = inputs = leaves((sum(LENGTHS), 4, 6), (sum(LENGTHS), 2, 6), (sum(LENGTHS), 2, 6))
    bias = None
    if biased:
        relative = RelativeBias(8, 20, 4, causal).double()
        torch.nn.init.normal_(relative.weight)
        bias, inputs = relative(spec), [*inputs, relative.weight]
    got = attend(q, k, v, spec, 0.3, softcap, bias=bias)
    expected = attend_reference(q, k, v, rows, 0.3, window, softcap, causal, bias=bias)
    torch.testing.assert_close(got, expected)
    for one, other in zip(gradients(got, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rectangle", [False, True])
def test_groups_of_pairs(split, rectangle):
    """Queries of some lengths to keys of others, end to end or as a cache holds them."""
    sources = (3, 50, 2, 2, 9, 40, 1, 1, 7, 2)
    rows, own = Rows.of([[1] * n for n in LENGTHS]), Rows.of_lengths(sources, CPU)
    q, k, v = inputs = leaves((sum(LENGTHS), 4, 6), (sum(sources), 4, 6), (sum(sources), 4, 6))
    spec = MaskSpec(rows, causal=False, keys=sources)
    assert len(spec.groups) > 3
    keys, values = (attention.to_heads(x, own) if rectangle else x for x in (k, v))
    got = attend_to(q, keys, values, spec, 0.3)
    expected = attend_reference(q, k, v, rows, 0.3, causal=False, keys=sources)
    torch.testing.assert_close(got, expected)
    for one, other in zip(gradients(got, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sorted_first", [True, False])
def test_rectangles_hold_little_more_than_their_rows(sorted_first):
    lengths = [990, *[8 + n % 25 for n in range(400)], 300, 500]
    lengths = sorted(lengths, reverse=True) if sorted_first else lengths
    spec = MaskSpec(Rows.of_lengths(tuple(lengths), CPU))
    covered = [row for rows, _ in spec.groups for row in range(rows.start, rows.stop)]
    assert covered == list(range(len(lengths)))
    cells = sum(len(own.rows.lengths) * own.rows.longest**2 for _, own in spec.groups)
    tokens = sum(len(own.rows.lengths) * own.rows.longest for _, own in spec.groups)
    assert cells < 0.02 * len(lengths) * max(lengths) ** 2
    assert tokens < 2 * sum(lengths)
    assert len(spec.groups) < 12


def test_rows_of_one_length_and_small_rectangles_are_not_cut():
    assert len(MaskSpec(Rows.of_lengths((300,) * 50, CPU)).groups) == 1
    assert len(MaskSpec(Rows.of_lengths((60, 50, 3, 2, 1), CPU)).groups) == 1
    assert len(MaskSpec(Rows.of_lengths((900, 1), CPU), starts=[4, 5]).groups) == 1


MAKE = {"llama-tied": tiny, "gemma2": tiny, "bert": tiny_encoder, "modernbert": tiny_encoder}
MAKE |= {"t5": tiny_pairs, "marian": tiny_pairs}


@pytest.mark.parametrize("family", MAKE)
def test_models_give_the_same_in_groups(monkeypatch, family):
    model = MAKE[family](family).requires_grad_(True)
    ids = [[(7 * n + i) % 90 + 2 for i in range(n)] for n in LENGTHS]
    rows = Pairs(Rows.of(ids), Rows.of(ids[::-1])) if MAKE[family] is tiny_pairs else Rows.of(ids)
    together = model(rows)
    monkeypatch.setattr(attention, "SMALL", 0)
    apart = model(rows)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)
    wanted = gradients(together, tuple(model.embed.parameters()))
    for one, other in zip(gradients(apart, tuple(model.embed.parameters())), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


WIDE = {  # heads of 64 dimensions
    "llama": LLAMA | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gemma2": CONFIGS["gemma2"]
    | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "head_dim": 64},
    "bert": BERT | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2},
    "modernbert": ENCODER_CONFIGS["modernbert"]
    | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "attention_dropout": 0.1},
    "t5": T5_SMALL | {"d_model": 128, "d_ff": 256, "d_kv": 64, "num_heads": 2},
    "marian": MARIAN
    | {"d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "attention_dropout": 0.1},
}


def bytes_kept(model, ids):
    """What a forward pass in training keeps for its backward pass, besides the weights."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    pair = [[1, 2, 3]] * len(ids)
    rows = Pairs(Rows.of(ids), Rows.of(pair)) if model.KIND == "encoder-decoder" else Rows.of(ids)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(rows)
    return sum(kept.values()) - sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("long", [990, 1500])
@pytest.mark.parametrize("family", WIDE)
def test_a_long_row_among_short_ones_costs_no_more_than_they_do(family, long):
    fields = WIDE[family] | {"max_position_embeddings": 2048}
    model = family_of(fields).from_hf(fields).init_weights(0).requires_grad_(True).train()
    short = [5 + n % 26 for n in range(800)]
    most = []
    for lengths in (short, [*short, long]):
        lengths = np.array(lengths)
        parts = micro_batches(np.arange(len(lengths)), lengths, 4096)
        most.append(max(bytes_kept(model, [[4] * n for n in lengths[part]]) for part in parts))
    assert most[1] < 1.3 * most[0]


@pytest.mark.parametrize("how", ["plain", "window", "softcap", "dropout", "bias", "bias that trains"])
@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
def test_a_long_row_has_few_of_its_scores_at_a_time(how, number):
    """In its backward pass too."""
    S, H = 800, 32
    rows, scores = Rows.of([[1] * S]), H * S * S * number.itemsize
    q, k, v = (torch.randn(S, H, 8, dtype=number, requires_grad=True) for _ in range(3))
    bias = torch.randn(H, S, S, dtype=number, requires_grad=how.endswith("trains")) if "bias" in how else None
    spec = MaskSpec(rows, window=300 if how == "window" else None, causal="bias" not in how)
    more = {"softcap": {"softcap": 5.0}, "dropout": {"dropout": 0.1}}.get(how, {})
    there = [tensor for tensor in (q, k, v, bias, spec.additive_mask(q)) if tensor is not None]
    with Held(there) as held:
        y = attend(q, k, v, spec, 0.3, bias=bias, **more)
        assert held.now < scores / 5
        y.sum().backward()
    whole = 2 if how.endswith("trains") else 0  # the bias has a gradient, of parts that are joined
    assert held.peak < (whole + 1.1) * scores


def test_what_dropout_keeps_twice_is_made_again_sooner():
    S, H = 400, 8
    q, k, v = (torch.randn(S, H, 8, requires_grad=True) for _ in range(3))
    with Held([q, k, v]) as held:
        y = attend(q, k, v, MaskSpec(Rows.of([[1] * S])), 0.3, dropout=0.1)
    assert held.now < H * S * S * 4 / 5
    assert y.requires_grad


@pytest.mark.parametrize("masks", ["none", "shared", "own"])
def test_what_is_computed_again_has_the_same_numbers_and_gradients(masks):
    """With dropout, whose numbers are drawn once more, and the generator goes on from where it was."""
    leaf = lambda *shape: torch.randn(shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    q, k, v = leaf(3, 4, 6, 5), leaf(3, 2, 6, 5), leaf(3, 2, 6, 5)
    mask = {"none": None, "shared": leaf(1, 1, 6, 6), "own": leaf(3, 4, 6, 6)}[masks]
    inputs = [x for x in (q, k, v, mask) if x is not None]
    found = []
    for again in (False, True):
        torch.manual_seed(7)
        y = head_attention._attend_in_parts(q, k, v, mask, 0.3, 5.0, 0.2, again)
        torch.rand(3)
        found.append((y, *torch.autograd.grad(y.sin().sum(), inputs), torch.rand(2)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_to_compute_again_imports_neither_sympy_nor_torchs_compiler():
    code = """
import sys, torch
from microplane.nn.attention import MaskSpec, attend
from microplane.nn.rows import Rows
q, k, v = (torch.randn(700, 2, 8, requires_grad=True) for _ in range(3))
attend(q, k, v, MaskSpec(Rows.of([[1] * 700])), 0.3, dropout=0.1).sum().backward()
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@torch.inference_mode()
def test_scores_of_long_rows_that_are_made_again_in_backward_are_made_once_without_one():
    model = tiny("gemma2")
    long = [n % 90 for n in range(520)]
    alone, beside = model(Rows.of([long])), model(Rows.of([long, [1, 2]]))
    torch.testing.assert_close(beside[: len(long)], alone)


SHORT = (128, 96, 77, 64, 60, 51, 47, 40, 38, 33, 30, 24, 19, 15, 12, 9)


def test_scores_that_are_sums_of_products_make_smaller_rectangles():
    once, thrice = (MaskSpec(Rows.of_lengths(SHORT, CPU), causal=False, terms=terms).groups for terms in (1, 3))
    assert len(thrice) > len(once)
    assert all(own.terms == 3 for _, own in thrice)
    assert [row for rows, _ in thrice for row in range(rows.start, rows.stop)] == list(range(len(SHORT)))


@pytest.mark.parametrize(("family", "terms"), [("deberta", 3), ("bert", 1)])
def test_an_encoder_tells_how_many_products_make_a_score(family, terms, monkeypatch):
    model, seen = tiny_encoder(family), []
    monkeypatch.setattr(encoder, "MaskSpec", lambda *how, **more: seen.append(more["terms"]) or MaskSpec(*how, **more))
    model(Rows.of([[5, 6, 7], [5, 6]]))
    assert seen == [terms]
