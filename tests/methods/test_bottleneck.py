"""Bottleneck adapters: where they stand, what they count, and that a start at zero changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from microplane.errors import AdapterError
from microplane.methods import make_method
from microplane.methods.bottleneck import Adapter
from microplane.methods.method import trainable, trainable_parameters
from tests.methods.kit import shake
from tests.methods.test_families import hidden
from tests.tiny import tiny, tiny_encoder, tiny_pairs

MODELS = {
    "decoder": tiny,
    "gemma2": lambda: tiny("gemma2"),
    "t5": tiny_pairs,
    "marian": lambda: tiny_pairs("marian"),
    "bert": tiny_encoder,
    "modernbert": lambda: tiny_encoder("modernbert"),
}
D, M = 32, 4


def attached(make, **knobs):
    method, model = make_method({"name": "bottleneck", "width": M, **knobs}), make()
    method.attach(model)
    return method, model.eval()


def adapters(model):
    return {name for name, module in model.named_modules() if isinstance(module, Adapter)}


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("name", MODELS)
def test_a_start_at_zero_is_the_base_to_the_bit_and_a_small_one_is_near(name, kind):
    make = MODELS[name]
    with torch.no_grad():
        base = hidden(make())
        assert torch.equal(hidden(attached(make, kind=kind)[1]), base)
        near = hidden(attached(make, kind=kind, init="small")[1])
    assert not torch.equal(near, base)
    assert (near - base).abs().max() < 1e-3 * base.abs().max()


def test_what_it_says_of_itself_follows_its_knobs():
    assert make_method("bottleneck").starts_at_base
    assert not make_method({"name": "bottleneck", "init": "small"}).starts_at_base
    assert make_method({"name": "bottleneck", "kind": "houlsby"}).trains_base
    assert not make_method({"name": "bottleneck", "kind": "houlsby", "norms": False}).trains_base
    assert make_method({"name": "bottleneck", "norms": True}).trains_base


def test_houlsbys_count_is_the_formulas():
    _, model = attached(tiny_encoder, kind="houlsby")
    one, layers, norms = 2 * M * D + M + D, 2, 2 * 2 + 1  # the last norm is that of the embeddings
    assert trainable_parameters(model) == 2 * layers * one + norms * 2 * D


def test_where_they_stand():
    block = {"attention_socket", "mlp_socket"}
    assert adapters(attached(tiny)[1]) == {f"layers.{i}.mlp_socket" for i in range(2)}
    assert adapters(attached(tiny, kind="houlsby")[1]) == {f"layers.{i}.{s}" for i in range(2) for s in block}
    t5 = adapters(attached(tiny_pairs, kind="houlsby")[1])
    assert t5 == {
        f"{stack}.layers.{i}.{socket}"
        for stack, sockets in (("encoder", block), ("decoder", block | {"cross_attention_socket"}))
        for i in range(2)
        for socket in sockets
    }
    assert adapters(attached(tiny_pairs, kind="parallel")[1]) == {
        f"{stack}.layers.{i}.mlp.adapter" for stack in ("encoder", "decoder") for i in range(2)
    }


def test_the_formula_in_a_socket_and_beside_the_layer():
    _, model = attached(tiny, kind="pfeiffer", activation="gelu")
    shake(model)
    socket, y = model.layers[0].mlp_socket, torch.randn(5, D)
    inner = F.gelu(y @ socket.down_proj.weight.T + socket.down_proj.bias)
    torch.testing.assert_close(socket(y), y + inner @ socket.up_proj.weight.T + socket.up_proj.bias)
    _, model = attached(tiny, kind="parallel", scale=3.0)
    shake(model)
    mlp, x = model.layers[0].mlp, torch.randn(5, D)
    torch.testing.assert_close(mlp(x), mlp.base(x) + 3.0 * mlp.adapter(x))


def test_in_bert_it_stands_before_the_sum_and_its_norm():
    _, model = attached(tiny_encoder, kind="pfeiffer")
    shake(model)
    block = model.layers[0]
    seen = {}
    block.mlp_norm.register_forward_pre_hook(lambda module, args: seen.update(summed=args[0]))
    block.mlp.register_forward_hook(lambda module, args, out: seen.update(x=args[0], y=out))
    hidden(model)
    torch.testing.assert_close(seen["summed"], seen["x"] + block.mlp_socket(seen["y"]))


def test_it_is_narrower_by_the_reduction():
    method, model = make_method({"name": "bottleneck", "reduction": 8}), tiny()
    method.attach(model)
    assert model.layers[0].mlp_socket.down_proj.out_features == D // 8
    model = tiny()
    make_method({"name": "bottleneck", "reduction": 1000}).attach(model)
    assert model.layers[0].mlp_socket.down_proj.out_features == 1


def test_dropout_falls_in_training_alone():
    _, model = attached(tiny, dropout=0.5)
    shake(model)
    calm = hidden(model)
    assert torch.equal(hidden(model), calm)
    assert not torch.equal(hidden(model.train()), calm)


def test_norms_train_with_houlsby_and_where_asked():
    cases = {True: [{"kind": "houlsby"}, {"norms": True}], False: [{"kind": "houlsby", "norms": False}, {}]}
    for norms, knobs in [(norms, knobs) for norms, several in cases.items() for knobs in several]:
        _, model = attached(tiny_encoder, **knobs)
        own = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        assert (own <= {id(p) for p in trainable(model).values()}) == norms


def test_it_does_not_merge():
    method, model = attached(tiny)
    with pytest.raises(AdapterError, match="bottleneck cannot be merged"):
        method.merge(model)
