"""The load on the server, made small: it comes to its end, and nobody gets the answer of another adapter."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

pytest.importorskip("peft")


@pytest.mark.slow
def test_a_small_load(tmp_path):
    serve = pytest.importorskip("serve")
    args = Namespace(family="t5", clients=3, adapters=2, tokens=4, seconds=3.0, pairs=2, peer_requests=2)
    found = serve.measure(args, tmp_path)
    assert found["answers_unlike_single_user"] == 0
    assert found["exit_code"] == 0
    runs = [*found["runs"].values(), *(run for pair in found["pairs"] for run in pair.values())]
    assert len(runs) == 6
    assert not any(run["errors"] or run["changed"] for run in runs)
    assert min(found["times_one_client"], found["one_adapter_to_all"]["median"]) > 0
