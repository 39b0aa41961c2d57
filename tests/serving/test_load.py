"""Many clients for a while, some of them bad: no answer is lost or mixed up, and the memory stays flat."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil
import pytest

from microplane.inference.pipeline import load
from tests.serving.kit import PROMPTS, adapter, decoder_folder, pair_folder
from tests.serving.test_process import served

SECONDS = 60
CLIENTS = 64


def ask(client, address, model, prompt):
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 16}
    answer = client.post(f"{address}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def misbehave(address, names, over):
    """Clients that go away, send too much, and read slowly."""
    body = {"model": names[0], "messages": [{"role": "user", "content": "go on"}], "max_tokens": 100, "stream": True}
    while not over.is_set():
        with httpx.Client(timeout=0.05) as client, suppress(httpx.HTTPError):
            client.post(f"{address}/v1/chat/completions", json=body | {"stream": False, "n": 8})
        large = body | {"messages": [{"role": "user", "content": "a" * 5_000_000}]}
        assert httpx.post(f"{address}/v1/chat/completions", json=large, timeout=30).status_code == 413
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                over.wait(0.05 if line else 0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["decoder", "t5"])
def test_64_clients_and_8_adapters(tmp_path, family):
    base = (decoder_folder if family == "decoder" else pair_folder)(tmp_path / "base")
    names = [f"a{number}" for number in range(8)]
    for number, name in enumerate(names):
        adapter(base, tmp_path / "adapters" / name, seed=number, rank=2 + number)
    opened = {name: load(tmp_path / "adapters" / name, "float32") for name in names}
    expected = {(n, p): opened[n].generate(p, max_new_tokens=16) for n, p in itertools.product(names, PROMPTS)}
    options = ("--adapters", tmp_path / "adapters", "--dtype", "float32", "--queue", "1000")
    with served(base, *options) as (process, address, _):
        counts, over, memory = dict.fromkeys(expected, 0), threading.Event(), []
        end = time.monotonic() + SECONDS

        def client(number):
            with httpx.Client(timeout=120) as own:
                for key in itertools.islice(itertools.cycle(expected), number, None):
                    if time.monotonic() > end:
                        return
                    assert ask(own, address, *key) == expected[key]
                    counts[key] += 1

        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            bad = pool.submit(misbehave, address, names, over)
            clients = [pool.submit(client, number) for number in range(CLIENTS)]
            while not all(one.done() for one in clients):
                time.sleep(1)
                memory.append(psutil.Process(process.pid).memory_info().rss)
            over.set()
            for one in [*clients, bad]:
                one.result()
        settled = memory[len(memory) // 4 :]
        assert max(settled) / settled[0] < 1.03, [size >> 20 for size in memory]
        assert sum(counts.values()) > 1000
        process.terminate()
        assert process.wait(30) == 0
