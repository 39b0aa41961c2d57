"""`microplane serve` as a process of its own: what it says, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

SOURCE = Path(__file__).parents[2] / "src"


@contextmanager
def served(*arguments, wait=True):
    """The process and, once it has said it, its address."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "MICROPLANE_TOKEN": ""}
    command = [sys.executable, "-m", "microplane", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    said, address = [], None
    try:
        while wait and address is None:
            line = process.stderr.readline()
            assert line, f"it ended: {''.join(said)}"
            said.append(line)
            if line.startswith("http://"):
                address = line.split()[0]
        yield process, address, said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_sigterm_finishes_what_runs_and_takes_nothing_new(bases, adapters):
    with served(bases["base"], "--adapters", adapters, "--dtype", "float32") as (process, address, said):
        assert any(line.startswith("lora1: writes, embeds; in one batch with its base") for line in said)
        body = {"model": "lora1", "messages": [{"role": "user", "content": "go on"}], "max_tokens": 480}
        body |= {"response_format": {"type": "json_object"}, "temperature": 2.0, "seed": 1, "stream": True}
        lines, stopped = [], threading.Event()
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if len(lines) == 8 and not stopped.is_set():
                    process.send_signal(signal.SIGTERM)
                    stopped.set()
                    time.sleep(0.2)
                    with pytest.raises(httpx.HTTPError):
                        httpx.get(f"{address}/health", timeout=5)
        told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert told[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert "data: [DONE]" in lines
        assert process.wait(timeout=20) == 0
        assert "ended" in process.stderr.read()


def test_a_server_goes_on_and_ends_well_though_nobody_reads_what_it_says(bases):
    with served(bases["base"], "--dtype", "float32") as (process, address, _):
        process.stderr.close()
        assert httpx.get(f"{address}/health", timeout=20).status_code == 200
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_a_port_that_is_taken_is_said_before_anything_is_read(bases):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with served(bases["base"], "--port", str(port), wait=False) as (process, _, _):
            text = process.stderr.read()
            assert process.wait(timeout=20) == 1
    assert f"error: cannot listen on 127.0.0.1, port {port}" in text
    assert "Traceback" not in text
