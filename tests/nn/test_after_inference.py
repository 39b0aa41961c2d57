"""Buffers and tables that are first made in inference mode, while generating, serve training to the same bits."""

from __future__ import annotations

import threading

import pytest
import torch

from microplane.config.knobs import GenerateKnobs, TrainKnobs
from microplane.inference.generate import generate
from microplane.methods import make_method
from microplane.methods.method import attach_method, trainable
from microplane.models.files.load import load_model, save_model
from microplane.nn import position
from microplane.nn.number_format import NumberFormat
from microplane.nn.ops import nf4
from microplane.nn.ops.scratch import scratch_buffer
from microplane.nn.rows import Rows
from microplane.training.optim import make_optimizer
from tests.contract.test_methods import steps
from tests.inference.test_generate import Bytes
from tests.tiny import tiny, tiny_pairs

TABLES = (nf4.levels, nf4.dynamic_map, nf4._level_pairs, nf4._code_of_bin, position._sinusoid_table)
FORMS = {
    "float32": NumberFormat(torch.float32),
    "bfloat16": NumberFormat(torch.bfloat16),
    "int8": NumberFormat(torch.float32, "int8"),
    "nf4": NumberFormat(torch.float32, "nf4"),
    "nf4 in bfloat16": NumberFormat(torch.bfloat16, "nf4"),
    "nf4, cached": NumberFormat(torch.float32, "nf4", cached=True),
    "int8, 8-bit products": NumberFormat(torch.float32, "int8", in_8_bits=True),
    "nf4, 8-bit products": NumberFormat(torch.float32, "nf4", in_8_bits=True),
    "nf4, 8-bit products, cached": NumberFormat(torch.float32, "nf4", cached=True, in_8_bits=True),
}


def alone(function):
    """function() where no buffer and no table has been made yet: in a thread of its own, the tables forgotten."""
    for table in TABLES:
        table.cache_clear()
    results, errors = [], []

    def run():
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(tiny("llama-untied"), path)
    return path


def write(model):
    generate(model, Bytes(), [[5, 6, 7], [8]], GenerateKnobs(max_new_tokens=4), [])


def trained(model, name):
    """The losses and the trained numbers of three steps."""
    method = make_method(name)
    torch.manual_seed(0)
    attach_method(method, model)
    losses = steps(model, method, make_optimizer(method, model, TrainKnobs(lr=1e-2)), 3)
    return losses, {name: tensor.detach().clone() for name, tensor in trainable(model).items()}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("form", FORMS)
def test_a_base_that_has_generated_trains_to_the_same_bits(way, folder, form, method):
    def run(first):
        model = load_model(folder, FORMS[form])
        if first:
            write(model)
        return trained(model, method)

    losses, tensors = alone(lambda: run(first=False))
    again, others = alone(lambda: run(first=True))
    assert again == losses
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_so_does_an_encoder_decoder(way, name):
    def run(first):
        model = tiny_pairs(name)
        rows = Rows.of([[5, 6, 7], [8]])
        if first:
            write(model)
            with torch.inference_mode():
                model.encode(rows)
        method = make_method("lora")
        torch.manual_seed(0)
        attach_method(method, model)
        model.encode(rows).pow(3).sum().backward()  # the same rows, whose indices are computed once
        return [parameter.grad for parameter in trainable(model).values() if parameter.grad is not None]

    expected, got = alone(lambda: run(first=False)), alone(lambda: run(first=True))
    assert len(expected) == len(got) > 0
    assert all(map(torch.equal, expected, got))


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_quantised_base_measured_in_inference_mode_takes_an_adapter(way, folder, form):
    """`attach` reads the weights, and training needs larger buffers than the few tokens of the measurement."""

    def run(measure):
        model = load_model(folder, FORMS[form])
        if measure:
            with torch.inference_mode():
                model.logits(model(Rows.of([[1, 2, 3]])))
        return trained(model, "dora")

    assert alone(lambda: run(measure=True))[0] == alone(lambda: run(measure=False))[0]


def test_scratch_memory_is_of_its_use_format_and_device():
    def run():
        with torch.inference_mode():
            first = scratch_buffer("sums", (4, 3), torch.float32, torch.device("cpu"))
        assert not first.is_inference()
        cpu = torch.device("cpu")
        assert scratch_buffer("sums", (2, 3), torch.float32, cpu).data_ptr() == first.data_ptr()
        assert scratch_buffer("rows", (2, 3), torch.float32, cpu).data_ptr() != first.data_ptr()
        assert scratch_buffer("sums", (2, 3), torch.int32, cpu).data_ptr() != first.data_ptr()
        assert scratch_buffer("sums", (2, 3), torch.float32, torch.device("meta")).is_meta
        assert scratch_buffer("sums", (2, 3), torch.float32, cpu).data_ptr() == first.data_ptr()

    alone(run)


def test_tables_first_made_in_inference_mode_are_ordinary_tensors():
    def run():
        with torch.inference_mode(), torch.device("meta"):
            return [nf4.levels(), nf4.dynamic_map(), nf4._level_pairs(), nf4._code_of_bin()]

    for table in alone(run):
        assert not table.is_inference()
        assert not table.is_meta
