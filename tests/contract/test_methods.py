"""The contract of a method, on a decoder, T5, the Transformer of 2017 and BERT. A new method is tested by its line in
METHODS.

Every method meets every family with its defaults; its other knobs are tried on one of them, for a family knows nothing
of methods, and a method of families only where it places what trains. What cannot be is refused, and listed here.
"""

from __future__ import annotations

import copy

import pytest
import torch

from microplane.checkpoints.adapter import load_adapter, read_method, save_adapter
from microplane.config.knobs import TrainKnobs
from microplane.errors import AdapterError, ConfigError
from microplane.methods import METHODS, make_method
from microplane.methods.adapted_linear import AdaptedLinear
from microplane.methods.disable import disabled
from microplane.methods.method import attach_method, load_state, state_of, trainable
from microplane.objectives.next_token import NextToken
from microplane.training.init_from_data import sample_losses
from microplane.training.optim import make_optimizer
from microplane.training.resume import load_checkpoint, save_checkpoint
from tests.contract.families import FAMILIES

DATA = FAMILIES["llama-tied"].data
ONE, PAIRS = "llama-tied", "t5"
REFUSED = {
    ("bitfit", "llama-tied"): "trains biases, and LlamaForCausalLM has none",
    ("bitfit", "t5"): "trains biases, and T5ForConditionalGeneration has none",
    ("bitfit", "t5gemma"): "trains biases, and T5GemmaForConditionalGeneration has none",
    ("bitfit", "t5gemma2"): "trains biases, and T5Gemma2ForConditionalGeneration has none",
    ("bitfit", "granite"): "trains biases, and GraniteForCausalLM has none",
    ("bitfit", "eurobert"): "trains biases, and EuroBertModel has none",
    ("last-n", "albert"): "method.n = 2 is more than the number of blocks here, 1. Set it to 1 or less",
    ("bitfit", "phi3"): "trains biases, and Phi3ForCausalLM has none",
    **{("ia3", name): "'k', 'v' .* q, k, v are one linear layer here, qkv" for name in ("gpt2", "gpt_neox", "phi3")},
    ("head-only", "gpt2"): "this GPT2LMHeadModel has no head of its own to train",
    ("head-only", "granite"): "this GraniteForCausalLM has no head of its own to train",
    ("bitfit", "olmo2"): "trains biases, and Olmo2ForCausalLM has none",
    ("head-only", "olmo2"): "this Olmo2ForCausalLM has no head of its own to train",
    ("head-only", "llama-tied"): "this LlamaForCausalLM has no head of its own to train",
    ("head-only", "t5gemma"): "this T5GemmaForConditionalGeneration has no head of its own to train",
    ("head-only", "t5gemma2"): "this T5Gemma2ForConditionalGeneration has no head of its own to train",
    ("head-only", "starcoder2"): "this Starcoder2ForCausalLM has no head of its own to train",
    ("head-only", "marian"): "this MarianMTModel has no head of its own to train",
    **{
        ("head-only", kind): f"this {name}ForConditionalGeneration has no head of its own to train"
        for kind, name in {"bart": "Bart", "mbart": "MBart", "m2m_100": "M2M100", "pegasus": "Pegasus"}.items()
    },
}
MORE = [
    (ONE, {"name": "rslora", "rank": 3, "targets": ["q", "down"]}),
    (ONE, {"name": "lora", "rank": 2, "dropout": 0.3}),
    (ONE, {"name": "lora", "rank": 3, "start": "pissa"}),
    (ONE, {"name": "lora", "rank": 3, "start": "olora", "dropout": 0.3}),
    (ONE, {"name": "lora", "rank": 3, "start": "eva", "start_rows": 16}),
    (ONE, {"name": "lora+", "rank": 3, "start": "lora_ga", "start_rows": 16}),
    (ONE, {"name": "dora", "rank": 3, "start": "pissa"}),
    (ONE, {"name": "dora", "rank": 2, "dropout": 0.3}),
    (ONE, {"name": "vera", "rank": 5, "dropout": 0.3, "save_projections": False}),
    (ONE, {"name": "ia3", "targets": ["q", "up"], "feedforward": []}),
    (ONE, {"name": "lora", "rank": "auto", "dropout": 0.3}),
    ("albert", {"name": "last-n", "n": 1}),
    (ONE, {"name": "adalora", "rank": 2, "initial_rank": 4, "interval": 1, "dropout": 0.1}),
    (ONE, {"name": "scalora", "rank": 2, "interval": 1}),
    (ONE, {"name": "nb-lora", "rank": 3, "p": 1, "bounds": "fixed"}),
    (ONE, {"name": "bottleneck", "kind": "houlsby", "init": "small", "dropout": 0.1}),
    (ONE, {"name": "bottleneck", "kind": "parallel", "width": 3}),
    (ONE, {"name": "prompt", "length": 3, "start": "random", "norms": True}),
    (ONE, {"name": "prefix", "length": 3, "start": "zero"}),
    (ONE, {"name": "prefix", "length": 3, "mlp": True, "mlp_width": 8}),
    (PAIRS, {"name": "bottleneck", "kind": "houlsby"}),
    (PAIRS, {"name": "prefix", "length": 3, "attentions": ["cross"], "mlp": True, "mlp_width": 8}),
    *((name, {"name": "ia3", "targets": ["qkv"]}) for name in ("gpt2", "gpt_neox", "phi3")),
    ("gemma2", {"name": "lora"}),
    ("gemma2", {"name": "full"}),
]
CASES = [(family, {"name": name}) for family in FAMILIES if family != "gemma2" for name in METHODS] + MORE
WORKING = [(family, knobs) for family, knobs in CASES if len(knobs) > 1 or (knobs["name"], family) not in REFUSED]
# One of each kind meets every method in the ordinary tests. The others meet two there, and all in the slow ones.
WHOLE = {"llama-tied", "gemma2", "t5", "marian", "bert"}
QUICK = {"lora", "prompt"}
SLOW = {"t5gemma2", "bart", "mbart", "pegasus"}  # computed by the same lines as another: there they meet none


def label(case) -> str:
    return "-".join([case[0], *(str(value) for value in case[1].values())])


def marked(case):
    slow = case[0] in SLOW or (case[0] not in WHOLE and case[1]["name"] not in QUICK)
    return pytest.param(case, marks=pytest.mark.slow) if slow else case


@pytest.fixture(params=[marked(case) for case in WORKING], ids=label)
def case(request):
    family, knobs = request.param
    return FAMILIES[family], make_method(knobs), label(request.param)


@pytest.fixture
def family(case):
    return case[0]


@pytest.fixture
def method(case):
    return case[1]


def attached(family, method, seed=0, prepare=True):
    model = family.build()
    torch.manual_seed(seed)
    attach_method(method, model)
    if prepare:
        method.init_from_data(model, sample_losses(family.objective, model, family.data, method.init_rows, 0, 64))
    return model


def steps(model, method, optimizer, count, start=0, total=6, family=None):
    data, objective = (family.data, family.objective) if family else (DATA, NextToken())
    losses = []
    for number in range(start, start + count):
        torch.manual_seed(number)
        model.train()
        batch = objective.collate(data, range(16))
        loss = objective.loss(model, batch) / batch.count
        loss.backward()
        method.step(model, optimizer, number, total)
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


TRAINED = {}  # by case


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    """Some hundred models are not held for all the tests behind."""
    yield
    TRAINED.clear()


@pytest.fixture
def trained(case):
    """Model, method, optimizer and losses after three steps, which all tests of a case get a copy of."""
    family, method, name = case
    if name not in TRAINED:
        model = attached(family, method)
        optimizer = make_optimizer(method, model, TrainKnobs(lr=family.lr))
        TRAINED[name] = model, method, optimizer, steps(model, method, optimizer, 3, family=family)
    return copy.deepcopy(TRAINED[name])


def test_attach_leaves_the_output_unchanged(family, method):
    if method.starts_at_base:
        assert torch.equal(family.output(family.build()), family.output(attached(family, method).eval()))


def test_the_models_own_weights_train_only_where_declared(family, method):
    model = family.build().requires_grad_(True)  # whoever hands it over need not have frozen it
    head = set(model.task_head.parameters()) if model.task_head else set()
    own = {id(parameter) for parameter in model.parameters() if parameter not in head}
    attach_method(method, model)
    declared = method.trains_base and bool(method.state(model))  # of head-only, a task head alone may train
    assert any(id(p) in own for p in trainable(model).values()) == declared


def test_groups_hold_each_trainable_tensor_once(family, method):
    model = attached(family, method)
    grouped = [id(p) for group in method.param_groups(model, 1e-3) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in trainable(model).values())


def test_every_trainable_tensor_moves_and_loss_falls_and_the_rest_stays(family, method):
    model = attached(family, method)
    family.output(model)  # a pass without gradients first must not cut anything off
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(method, model, TrainKnobs(lr=family.lr))
    losses = steps(model, method, optimizer, 4, family=family)
    names = set(trainable(model))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved | method.may_not_move(model) == names
    assert losses[-1] < losses[0]


def test_state_brings_a_fresh_model_to_the_same_bits(family, trained, tmp_path):
    model, method, _, _ = trained
    save_adapter(tmp_path, model, method, {"base": "tiny"})
    again, about = read_method(tmp_path)
    assert again == method
    assert about["base"] == "tiny"
    fresh = attached(family, again, seed=1, prepare=False)
    load_adapter(tmp_path, fresh, again)
    assert torch.equal(family.output(model), family.output(fresh.eval()))


def test_merge_keeps_the_output_and_leaves_plain_modules(family, trained):
    model, method, _, _ = trained
    if not method.mergeable:
        with pytest.raises(AdapterError, match="cannot be merged"):
            method.merge(model)
        return
    unmerged = family.output(copy.deepcopy(model).double())  # float32 itself errs by 3e-4 in the T5 that lora+ makes
    method.merge(model)
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())
    assert set(model.state_dict()) == set(family.build().state_dict())
    torch.testing.assert_close(family.output(model.double()), unmerged, atol=1e-4, rtol=1e-4)


def test_switched_off_it_is_the_base_and_on_again_as_before(family, trained):
    model, method, _, _ = trained
    wanted, modules = family.output(model), [name for name, _ in model.named_modules()]
    plain = family.build()
    if model.task_head is not None:  # it trains beside any method, and stays
        plain.task_head.load_state_dict(model.task_head.state_dict())
    if method.trains_base and method.state(model):
        refused = pytest.raises(AdapterError, match=f"the method {method.name} trains the model's own weights.*load")
        with refused, disabled(model):
            pass
    else:
        with disabled(model):
            assert torch.equal(family.output(model), family.output(plain))
            with disabled(model):  # a second time changes nothing
                assert torch.equal(family.output(model), family.output(plain))
        with pytest.raises(ZeroDivisionError), disabled(model.train()):
            _ = model.eval(), 1 / 0
        assert not any(module.training for module in model.modules())
    assert torch.equal(family.output(model), wanted)
    assert [name for name, _ in model.named_modules()] == modules


def test_three_steps_saved_and_continued_are_six_steps_bitwise(family, method, trained, tmp_path):
    straight, its_method, optimizer, _ = trained
    save_checkpoint(tmp_path, 3, straight, its_method, optimizer, {})
    losses = steps(straight, its_method, optimizer, 3, start=3, family=family)
    model = attached(family, method, seed=9, prepare=False)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=family.lr))
    load_checkpoint(tmp_path / "step-00000003", model, method, optimizer)
    assert steps(model, method, optimizer, 3, start=3, family=family) == losses
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_foreign_adapter_is_refused_with_a_list_and_changes_nothing(family, method):
    model = attached(family, method)
    before = copy.deepcopy(model.state_dict())
    state = dict(state_of(method, model))
    name = next(iter(state))
    state["stranger"] = state.pop(name)
    with pytest.raises(AdapterError) as caught:
        load_state(method, model, state)
    assert f"missing: {name}" in str(caught.value)
    assert "unexpected: stranger" in str(caught.value)
    with pytest.raises(AdapterError, match=r"shape of .* in the adapter, .* in the model"):
        load_state(method, model, {n: t.flatten()[:1] for n, t in state_of(method, model).items()})
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_adapters_in_float32_on_a_bfloat16_base(family, method):
    if method.trains == "weights":
        pytest.skip("its weights are kept in float32")
    model = family.build(torch.bfloat16)
    if method.needs_float32:
        with pytest.raises(ConfigError, match="the base is bfloat16"):
            method.attach(model)
        return
    attach_method(method, model)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=family.lr))
    losses = steps(model, method, optimizer, 5, family=family)
    assert all(p.dtype == torch.float32 for p in trainable(model).values())
    assert min(losses[1:]) < losses[0]


def test_facts_are_plain_values(method):
    assert set(method.facts()) >= {"quantize", "mergeable", "starts_at_base", "trains_base"}


@pytest.mark.parametrize(("name", "family"), REFUSED)
def test_what_a_model_has_no_room_for_is_refused(name, family):
    with pytest.raises(ConfigError, match=REFUSED[name, family]):
        make_method(name).attach(FAMILIES[family].build())
