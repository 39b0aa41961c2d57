"""Which format is taken by what was measured, and what a measurement is remembered by."""

from __future__ import annotations

import pytest
import torch

from microplane.config.knobs import ModelKnobs
from microplane.errors import ConfigError
from microplane.methods import make_method
from microplane.methods.base_format import base_format
from microplane.nn import number_format
from microplane.nn.number_format import NumberFormat, fastest_dtype, slowdown


@pytest.fixture
def timed(monkeypatch, tmp_path) -> dict[torch.dtype, float]:
    """Seconds of each format, and a cache of its own."""
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path))
    seconds = {torch.float32: 2.0, torch.bfloat16: 1.0, torch.int8: 0.5}
    monkeypatch.setattr(number_format, "_time", lambda dtype, device, known, budget=0.2: seconds[dtype])
    return seconds


@pytest.mark.parametrize(("bfloat16", "taken"), [(1.7, torch.bfloat16), (1.9, torch.float32), (4.0, torch.float32)])
def test_bfloat16_must_be_faster_by_a_tenth(timed, bfloat16, taken):
    timed[torch.bfloat16] = bfloat16
    assert fastest_dtype() == taken


def test_how_much_slower_a_format_is_than_float32(timed):
    timed[torch.bfloat16] = 6.0
    assert slowdown(NumberFormat(torch.float32)) == 1.0
    assert slowdown(NumberFormat(torch.bfloat16)) == 3.0
    assert slowdown(NumberFormat(torch.bfloat16, "int8", in_8_bits=True)) == 0.25
    assert slowdown(NumberFormat(torch.float64)) == 1.0


@pytest.mark.parametrize("what", ["threads", "processor", "torch"])
def test_what_was_measured_with_others_is_measured_again(timed, monkeypatch, what):
    assert fastest_dtype() == torch.bfloat16
    timed[torch.bfloat16] = 9.0
    assert fastest_dtype() == torch.bfloat16, "remembered"
    if what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif what == "processor":
        monkeypatch.setattr(number_format.environment, "processor", lambda: "another")
    else:
        monkeypatch.setattr(torch, "__version__", "9.9")
    assert fastest_dtype() == torch.float32


def test_weights_that_train_are_wide_whatever_multiplies_them(timed):
    form = base_format(ModelKnobs(dtype="bfloat16"), make_method("full"))
    assert (form.stored, form.multiplied, form.name) == (torch.float32, torch.bfloat16, "bfloat16")
    form = base_format(ModelKnobs(dtype="bfloat16"), make_method("lora"))
    assert (form.stored, form.multiplied) == (torch.bfloat16, None)


def test_what_is_stored_in_four_bits_stays_so_unless_another_format_is_asked_for(timed):
    lora = make_method("lora")
    assert base_format(ModelKnobs(), lora, "nf4").name == "nf4"
    assert base_format(ModelKnobs(), lora, "float16").name == "bfloat16"
    assert base_format(ModelKnobs(dtype="float32"), lora, "nf4").name == "float32"
    with pytest.raises(ConfigError, match=r"model\.init = random with a base in nf4"):
        base_format(ModelKnobs(init="random"), lora, "nf4")
