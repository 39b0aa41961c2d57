"""The contract of a method again, on bases in int8 and nf4: for every method that leaves the base alone."""

from __future__ import annotations

import copy

import pytest
import torch

from microplane.checkpoints.adapter import load_adapter, read_method, save_adapter
from microplane.config.knobs import TrainKnobs
from microplane.errors import AdapterError
from microplane.methods import METHODS, make_method
from microplane.methods.method import trainable
from microplane.models.files.load import load_model, save_model
from microplane.nn.number_format import NumberFormat
from microplane.nn.quantised import QUANTISED, QuantisedLinear
from microplane.training.optim import make_optimizer
from microplane.training.resume import load_checkpoint, save_checkpoint
from tests.contract.test_methods import DATA, steps
from tests.tiny import logits, tiny

FAMILY = "qwen2"  # which has biases


def works(name):
    method = make_method(name)
    return method.trains != "weights" and not method.needs_float32


METHODS_THERE = [name for name in METHODS if works(name)]
pytestmark = [
    pytest.mark.parametrize("kind", QUANTISED),
    pytest.mark.parametrize(("name", "family"), [(n, FAMILY) for n in METHODS_THERE] + [("lora", "llama-untied")]),
]
DTYPE = torch.float32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for family in ("llama-untied", FAMILY):
        found[family] = tmp_path_factory.mktemp(family)
        save_model(tiny(family), found[family])
    return found


def attached(folder, kind, method, seed=0, dtype=DTYPE):
    model = load_model(folder, NumberFormat(dtype, kind))
    assert sum(isinstance(module, QuantisedLinear) for module in model.modules()) == 14
    torch.manual_seed(seed)
    method.attach(model)
    return model


TRAINED = {}  # by case


@pytest.fixture
def trained(folders, name, family, kind):
    """Model, method and optimizer after three steps, which both tests of a case get a copy of."""
    case = (name, family, kind)
    if case not in TRAINED:
        method = make_method(name)
        model = attached(folders[family], kind, method)
        optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
        steps(model, method, optimizer, 3)
        TRAINED[case] = model, method, optimizer
    return copy.deepcopy(TRAINED[case])


def test_attach_leaves_the_output_of_the_quantised_base_unchanged(folders, name, family, kind):
    method = make_method(name)
    plain = load_model(folders[family], NumberFormat(DTYPE, kind))
    adapted = attached(folders[family], kind, method).eval()
    if method.starts_at_base:
        torch.testing.assert_close(logits(adapted, DATA), logits(plain, DATA), rtol=0, atol=1e-6)
    exact = logits(load_model(folders[family]), DATA)
    assert not torch.equal(logits(plain, DATA), exact)


def test_it_trains_and_the_base_stays(folders, name, family, kind):
    method = make_method(name)
    model = attached(folders[family], kind, method)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    losses = steps(model, method, optimizer, 4)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved >= set(trainable(model))
    assert not any("base." in key for key in moved)
    assert losses[-1] < losses[0]


def test_saved_and_loaded_it_is_the_same_to_the_bit(folders, name, family, kind, trained, tmp_path):
    model, method, _ = trained
    save_adapter(tmp_path, model, method, {"base": "tiny"})
    again, _ = read_method(tmp_path)
    fresh = attached(folders[family], kind, again, seed=1)
    load_adapter(tmp_path, fresh, again)
    assert torch.equal(logits(model, DATA), logits(fresh.eval(), DATA))


def test_resumed_it_goes_on_to_the_bit(folders, name, family, kind, trained, tmp_path):
    straight, its_method, optimizer = trained
    save_checkpoint(tmp_path, 3, straight, its_method, optimizer, {})
    losses = steps(straight, its_method, optimizer, 3, start=3)
    method = make_method(name)
    model = attached(folders[family], kind, method, seed=9)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    load_checkpoint(tmp_path / "step-00000003", model, method, optimizer)
    assert steps(model, method, optimizer, 3, start=3) == losses
    for key, tensor in straight.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key


def test_it_trains_with_products_in_bfloat16(folders, name, family, kind):
    method = make_method(name)
    model = attached(folders[family], kind, method, dtype=torch.bfloat16)
    optimizer = make_optimizer(method, model, TrainKnobs(lr=1e-2))
    losses = steps(model, method, optimizer, 5)
    assert all(parameter.dtype == torch.float32 for parameter in trainable(model).values())
    assert losses[-1] < losses[0]


def test_merging_into_it_is_refused(folders, name, family, kind):
    method = make_method(name)
    if method.mergeable and not method.trains_base:
        model = attached(folders[family], kind, method)
        with pytest.raises(AdapterError, match=f"the base is quantised \\({kind}\\).*microplane merge"):
            method.merge(model)
