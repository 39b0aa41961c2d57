"""What is shared out among trials are the cores that this process may run on, not all those of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BOUND = """
import json, os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.cpu_count = lambda: 64

from types import SimpleNamespace
from microplane.comparison.machines import ThisMachine
from microplane.comparison.ray_cluster import _connect
from microplane.errors import ConfigError
from microplane.runs.check_knobs import MOST_THREADS, _check_threads

def refusal(threads):
    try:
        _check_threads(threads)
    except ConfigError as error:
        return str(error)

begun = {}
_connect(SimpleNamespace(init=lambda **how: begun.update(how)), "local", None)
print(json.dumps({
    "threads": [ThisMachine(at_once).threads for at_once in (1, 2, 3)],
    "ray": begun["num_cpus"],
    "most": refusal(MOST_THREADS),
    "more": refusal(MOST_THREADS + 1),
}))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_a_process_that_is_bound_to_one_core_shares_out_one():
    done = subprocess.run([sys.executable, "-c", BOUND], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["threads"] == [None, 1, 1]
    assert found["ray"] == 1
    assert found["most"] is None
    assert "train.threads = 9: this process may run on 1 processor. Choose" in found["more"]
