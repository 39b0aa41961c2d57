"""What a run sets for its process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from microplane.config.knobs import TrainKnobs
from microplane.cpu_memory import can_cache, figures
from microplane.training.context import COMPILED, KEPT_PRODUCTS, run_context

PRODUCTS = """
import contextlib, sys, psutil, torch
from microplane.config.knobs import TrainKnobs
from microplane.hardware import give_back_memory
from microplane.training.context import run_context

def held():
    give_back_memory()
    return psutil.Process().memory_info().rss

with run_context(TrainKnobs(threads=1)) if sys.argv[1] == "run" else contextlib.nullcontext():
    weight, rows = torch.randn(256, 256).bfloat16(), torch.randn(1200, 256).bfloat16()
    (rows[:64] @ weight)
    before = held()
    for tokens in range(200, 800):
        rows[:tokens] @ weight
    print(held() - before)
"""


def grown(how: str) -> int:
    env = {name: value for name, value in os.environ.items() if name != COMPILED}
    done = subprocess.run([sys.executable, "-c", PRODUCTS, how], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_products_of_ever_other_numbers_of_tokens_do_not_pile_up():
    """600 of them, as a run of rows of every length makes within minutes."""
    if (without := grown("plain")) < 100_000_000:
        pytest.skip("this processor has no products in bfloat16 that are compiled for each shape")
    assert grown("run") < 0.75 * without  # all that is dropped leaves holes; 0.59 was seen


def test_a_run_keeps_the_pieces_of_its_large_tensors():
    if not can_cache():
        pytest.skip("there is no caching allocator here")
    with run_context(TrainKnobs()):
        torch.empty(1 << 23, dtype=torch.uint8)
        assert figures().idle >= 1 << 23
    assert figures().idle == 0


@pytest.mark.parametrize("own", [None, "7"])
def test_a_limit_of_the_users_own_stays(monkeypatch, own):
    monkeypatch.delenv(COMPILED, raising=False)
    if own:
        monkeypatch.setenv(COMPILED, own)
    with run_context(TrainKnobs()):
        assert os.environ[COMPILED] == (own or str(KEPT_PRODUCTS))
    assert os.environ.get(COMPILED) == own


PIECES = """
import psutil, torch
from microplane.hardware import keep_no_large_pieces

keep_no_large_pieces()
before, stays = psutil.Process().memory_info().rss, []
for _ in range(40):
    large = torch.ones(2 << 20)
    stays.append(torch.ones(1 << 14))
    del large
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told")
def test_large_pieces_go_back_as_soon_as_they_are_freed():
    """Forty of 8 MB, one alive at a time, with small ones that stay between them."""
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000_000
