"""Which device a run takes, and what is the same on all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microplane.device import CPU, choose, drawn, out_of_memory, present, put
from microplane.errors import ConfigError, TrainingError
from microplane.nn.ops.dropout import _words, _words_on


def test_a_device_is_chosen_or_refused_with_what_there_is():
    assert present()[-1] == CPU
    assert choose("cpu") == CPU
    assert choose("auto") == present()[0]
    with pytest.raises(ConfigError, match=r"model\.device = cuda:63: there is no such device here\. There is: .*cpu"):
        choose("cuda:63")


def test_several_processes_take_a_device_each(monkeypatch):
    devices = [torch.device("cuda", 0), torch.device("cuda", 1), CPU]
    monkeypatch.setattr("microplane.device.present", lambda: devices)
    for rank, wanted in ((0, "auto"), (1, "auto"), (1, "cuda")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert choose(wanted) == devices[rank]
    assert choose("cuda:0") == devices[0]
    assert choose("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="There is: cuda:0, cuda:1, cpu"):
        choose("auto")


def test_random_numbers_are_the_cpus():
    torch.manual_seed(3)
    expected = torch.empty(3, 40).normal_()
    torch.manual_seed(3)
    assert torch.equal(drawn(nn.init.normal_, 3, 40, device=CPU), expected)
    assert drawn(nn.init.normal_, 3, 40, device=torch.device("meta")).is_meta
    assert put(expected, CPU) is expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 123456789012345])
def test_dropout_hashes_alike_on_every_device(seed):
    here = torch.from_numpy(_words(seed, 1001).astype("int64"))
    assert torch.equal(_words_on(CPU, seed, 1001), here)


def test_a_device_that_is_full_says_what_to_change():
    told = r"(?s)does not hold a step: tried to allocate.*train\.micro_tokens"
    with pytest.raises(TrainingError, match=told), out_of_memory(TrainingError, "Take less: train.micro_tokens"):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB\nmore")
