"""BitFit, norm tuning and last-n: exactly what is declared trains, and vectors do on a base of any format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microplane.config.knobs import ModelKnobs, RunKnobs, TrainKnobs
from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.base_format import base_format
from microplane.methods.method import attach_method, state_of, trainable
from microplane.models.heads import add_head
from microplane.runs.check_knobs import check_knobs
from microplane.training.optim import make_optimizer
from tests.tiny import tiny, tiny_encoder, tiny_pairs


@pytest.mark.parametrize("make", [tiny_encoder, lambda: tiny_pairs("marian"), lambda: tiny("qwen2")])
def test_bitfit_trains_all_biases_and_nothing_else(make):
    model = make()
    make_method("bitfit").attach(model)
    assert set(trainable(model)) == {name for name, _ in model.named_parameters() if name.endswith(".bias")}


@pytest.mark.parametrize("make", [tiny, tiny_pairs, lambda: tiny_encoder("modernbert")])
def test_bitfit_is_refused_where_there_are_no_biases(make):
    model = make()
    with pytest.raises(ConfigError, match=r"bitfit.*it trains biases, and \w+ has none in its layers; choose norms"):
        make_method("bitfit").attach(model)


def test_a_task_heads_bias_does_not_count_as_one_of_the_model():
    model = tiny()
    head = add_head(model, "classification", ["a", "b"], pooling="mean")
    assert head.out.bias is not None
    with pytest.raises(ConfigError, match="it trains biases"):
        make_method("bitfit").attach(model)


@pytest.mark.parametrize("make", [tiny, lambda: tiny("qwen3"), tiny_pairs, lambda: tiny_pairs("marian"), tiny_encoder])
def test_norms_are_found_by_what_they_are(make):
    model = make()
    make_method("norms").attach(model)
    named = {name for name, _ in model.named_parameters() if "norm" in name}
    assert set(trainable(model)) == named
    assert all(parameter.dim() == 1 for parameter in trainable(model).values())


@pytest.mark.parametrize(("n", "trained"), [(1, {2}), (2, {1, 2}), (3, {0, 1, 2})])
def test_the_highest_blocks_train_and_those_below_are_frozen(n, trained):
    model = tiny_encoder("modernbert")
    attach_method(make_method({"name": "last-n", "n": n}), model)
    names = [name.split(".") for name in trainable(model)]
    assert {int(name[1]) for name in names if name[0] == "layers"} == trained
    assert model.frozen == 3 - n
    with pytest.raises(ConfigError, match="more than the number of blocks here, 3"):
        make_method({"name": "last-n", "n": 4}).attach(model)


@pytest.mark.parametrize("name", ["bitfit", "norms"])
def test_the_few_vectors_are_float32_and_the_rest_stays_as_it_is(name):
    model = tiny_encoder().bfloat16()
    before = {id(parameter) for parameter in model.parameters()}
    method = make_method(name)
    method.attach(model)
    assert {id(parameter) for parameter in model.parameters()} == before  # an optimizer may hold them
    for key, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), key
    assert base_format(ModelKnobs(name="x", dtype="nf4"), method).quantised == "nf4"
    assert base_format(ModelKnobs(name="x", dtype="bfloat16"), method).weights is None  # as all others


@pytest.mark.parametrize("knobs", [{"name": "bitfit"}, {"name": "norms"}, {"name": "prompt", "norms": True}], ids=str)
def test_weight_decay_does_not_pull_them_to_zero(knobs):
    model, method = tiny_encoder(), make_method(knobs)
    method.attach(model)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2, weight_decay=0.1))
    norms = (module for module in model.modules() if isinstance(module, nn.LayerNorm))
    own = {id(p) for norm in norms for p in norm.parameters() if p.requires_grad}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert own <= decays.keys()
    assert all(decays[number] == 0 for number in own)


def test_a_task_head_is_saved_once():
    model, method = tiny_encoder(), make_method("norms")
    add_head(model, "classification", ["a", "b"])
    attach_method(method, model)
    names = [name for name in state_of(method, model) if "task_head" in name or "classifier" in name]
    assert len(names) == 2  # weight and bias
    assert all(parameter.requires_grad for parameter in model.task_head.parameters())


def test_scaled_steps_are_refused_for_vectors_that_may_be_zero():
    knobs = RunKnobs(train=TrainKnobs(optimizer="adafactor", scale_parameter=True))
    with pytest.raises(ConfigError, match="scale_parameter = true"):
        check_knobs(knobs, make_method("bitfit"))
