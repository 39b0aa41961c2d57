"""Prefix tuning: the identity of its paper, every kind of attention, caches, and an MLP that is dropped."""

from __future__ import annotations

import math

import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.method import trainable, trainable_parameters
from microplane.methods.prefix import attention_sites
from microplane.models.configs.decoder import DecoderConfig
from microplane.models.decoder import Decoder
from microplane.nn.attention import MaskSpec, attend
from microplane.nn.attention_reference import attend_reference
from microplane.nn.rows import Pairs, Rows
from microplane.training.optim import make_optimizer
from microplane.training.resume import load_checkpoint, save_checkpoint
from tests.methods.kit import shake
from tests.methods.test_families import IDS, hidden
from tests.tiny import CONFIGS, tiny, tiny_encoder, tiny_pairs

MAKERS = {
    "decoder": tiny,
    "t5": tiny_pairs,
    "marian": lambda: tiny_pairs("marian"),
    "bert": tiny_encoder,
    "modernbert": lambda: tiny_encoder("modernbert"),
}


def attached(make=tiny, **knobs):
    method, model = make_method({"name": "prefix", "length": 3, **knobs}), make()
    torch.manual_seed(0)
    method.attach(model)
    return method, model.eval()


def prefixes(model):
    return {name: place.attention.prefix for name, place in attention_sites(model)}


def test_a_prefix_has_the_heads_of_the_keys_also_where_these_are_in_one_matrix_with_the_queries():
    fields = CONFIGS["phi3"] | {"num_attention_heads": 8}  # beside 2 of keys
    method, model = attached(lambda: Decoder(DecoderConfig.from_hf(fields)).init_weights(0))
    assert {prefix.shape for prefix in prefixes(model).values()} == {(2, 3, 4)}
    assert model(Rows.of([[5, 6, 7]])).isfinite().all()
    assert method.peft_config(model)["num_attention_heads"] == 2


@pytest.mark.parametrize("causal", [True, False])
def test_the_identity(causal):
    """Attn' = (1 - a) Attn + a softmax(q P_k) P_v, a the prefix's share of all the exponentials; in float64."""
    torch.manual_seed(0)
    rows, H, Dh, scale = Rows.of([[1] * 5, [1] * 2]), 2, 8, 1 / math.sqrt(8)
    q, k, v = torch.randn(3, 7, H, Dh, dtype=torch.float64)
    P_k, P_v = torch.randn(2, H, 3, Dh, dtype=torch.float64)
    got = attend(q, k, v, MaskSpec(rows, causal=causal), scale, prefix=(P_k, P_v))
    plain = attend_reference(q, k, v, rows, scale, causal=causal)
    at = 0
    for n in rows.lengths:
        own = torch.einsum("ihd,jhd->hij", q[at : at + n], k[at : at + n]) * scale
        if causal:
            own = own.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
        extra = torch.einsum("ihd,hjd->hij", q[at : at + n], P_k) * scale
        a = extra.exp().sum(-1) / (extra.exp().sum(-1) + own.exp().sum(-1))  # (H, n)
        beside = torch.einsum("hij,hjd->ihd", extra.softmax(-1), P_v)
        a = a.T[..., None]
        torch.testing.assert_close(got[at : at + n], (1 - a) * plain[at : at + n] + a * beside)
        at += n


@pytest.mark.parametrize("name", MAKERS)
def test_a_prefix_that_nothing_looks_at_leaves_the_base(name):
    make = MAKERS[name]
    _, model = attached(make)
    for prefix in prefixes(model).values():
        prefix.register_forward_hook(lambda module, args, pair: (pair[0] * 0, pair[1]))  # all scores of it are 0
    with torch.no_grad():
        seen = hidden(model)
        for module in model.modules():
            if hasattr(module, "prefix"):
                module.prefix = None
        assert torch.equal(hidden(model), hidden(make()))
    assert not torch.allclose(seen, hidden(make()), atol=1e-3)


@pytest.mark.parametrize("name", MAKERS)
def test_every_attention_has_one_and_all_of_it_trains(name):
    _, model = attached(MAKERS[name])
    own = [module for module in model.modules() if hasattr(module, "prefix")]
    assert own
    assert all(module.prefix is not None for module in own)
    shake(model, 0.5)
    hidden(model).square().mean().backward()
    assert all(parameter.grad.any() for parameter in trainable(model).values())


def test_it_counts_two_vectors_a_key_and_goes_where_it_is_told():
    assert trainable_parameters(attached()[1]) == 2 * 2 * 3 * (2 * 8)  # layers, k and v, length, KV Dh
    for kind, count in (("encoder", 2), ("decoder", 2), ("cross", 2), ("all", 6)):
        _, model = attached(tiny_pairs, attentions=[kind])
        assert sum(prefix is not None for prefix in prefixes(model).values()) == count
        assert trainable_parameters(model) == count * 2 * 3 * (3 * 8)
    with pytest.raises(ConfigError, match=r"attentions: 'cross' is not in this model; it has decoder \(or all\)"):
        attached(attentions=["cross"])
    with pytest.raises(ConfigError, match="method.attentions is empty"):
        attached(attentions=[])


@pytest.mark.parametrize("name", ["decoder", "t5", "marian"])
def test_step_by_step_with_a_cache_is_all_at_once(name):
    _, model = attached(MAKERS[name])
    shake(model, 0.5)
    prompts, more = [row[:5] for row in IDS], [[11, 12], [13, 14], [15, 16]]
    with torch.no_grad():
        cache, begun = model.start_generation(prompts)
        model(Rows.of(begun, starts=cache.lengths), cache)
        steps = [model(Rows.of([row[i : i + 1] for row in more], starts=cache.lengths), cache) for i in range(2)]
        whole = Rows.of([b + m for b, m in zip(begun, more, strict=True)])
        at_once = model(whole if model.KIND == "decoder" else Pairs(Rows.of(prompts), whole)).split(whole.lengths)
    for place, step in zip((-2, -1), steps, strict=True):
        torch.testing.assert_close(step, torch.stack([row[place] for row in at_once]), atol=1e-5, rtol=1e-5)


def test_the_relative_bias_of_t5_is_zero_at_the_prefix():
    _, model = attached(tiny_pairs, attentions=["encoder"])
    attention, rows = model.encoder.layers[0].attention, Rows.of([IDS[0]])
    x, mask_spec = torch.randn(len(IDS[0]), 32), MaskSpec(rows, causal=False)
    bias = attention.relative(mask_spec)  # (H, S, L)
    q, k, v = (linear(x).unflatten(-1, (-1, 8)).transpose(0, 1) for linear in (attention.q, attention.k, attention.v))
    keys, values = attention.prefix()
    scores = torch.cat([q @ keys.transpose(1, 2), q @ k.transpose(1, 2) + bias], -1)
    wanted = attention.o((scores.softmax(-1) @ torch.cat([values, v], 1)).transpose(0, 1).flatten(1))
    torch.testing.assert_close(attention(x, mask_spec, bias=bias), wanted, atol=1e-5, rtol=1e-5)


def test_a_start_at_zero_only_takes_its_share():
    for mlp in (False, True):
        _, model = attached(start="zero", mlp=mlp)
        assert not any(x.any() for prefix in prefixes(model).values() for x in prefix())
    q, k, v = torch.randn(3, 4, 2, 8)
    rows, zero = Rows.of([[1] * 4]), torch.zeros(2, 3, 8)
    own = attend(q, k, v, MaskSpec(rows, causal=False), 1.0)
    sums = torch.einsum("ihd,jhd->ihj", q, k).exp().sum(-1)[..., None]
    got = attend(q, k, v, MaskSpec(rows, causal=False), 1.0, prefix=(zero, zero))
    torch.testing.assert_close(got, own * sums / (sums + 3))


@pytest.mark.parametrize("name", ["decoder", "t5"])
def test_the_mlp_is_tanh_between_two_layers_and_is_dropped_with_the_same_bits(name):
    method, model = attached(MAKERS[name], mlp=True, mlp_width=8)
    prefix, trunk = next(iter(prefixes(model).values())), model.prefix_trunk
    inner = torch.tanh(trunk.embedding @ trunk.first.weight.T + trunk.first.bias)
    keys = (inner @ prefix.last.weight.T + prefix.last.bias)[:, : prefix.last.out_features // 2]
    torch.testing.assert_close(prefix.pair()[0].transpose(0, 1).flatten(1), keys)
    state = {key: tensor.detach().clone() for key, tensor in method.state(model).items()}
    plain, other = attached(MAKERS[name])
    assert {k: t.shape for k, t in state.items()} == {k: t.shape for k, t in plain.state(other).items()}
    _, fresh = attached(MAKERS[name], mlp=True, mlp_width=8)
    shake(fresh)
    method.load(fresh, state)
    assert torch.equal(hidden(fresh), hidden(model))
    assert trainable_parameters(fresh) == trainable_parameters(attached(MAKERS[name])[1])  # the MLP's memory is gone
    assert sum(parameter.numel() for parameter in fresh.prefix_trunk.parameters()) == 0


def test_resuming_brings_the_mlp_back_into_the_same_parameters(tmp_path):
    method, model = attached(mlp=True, mlp_width=8)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    hidden(model).square().mean().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 1, model, method, optimizer, {})
    _, again = attached(mlp=True, mlp_width=8)
    shake(again)
    second = make_optimizer(method, again, TrainKnobs(lr=1e-2))
    load_checkpoint(tmp_path / "step-00000001", again, method, second)
    known = {id(p) for group in second.param_groups for p in group["params"]}
    assert {id(p) for p in trainable(again).values()} == known
    assert all(torch.equal(trainable(model)[name], p) for name, p in trainable(again).items())
