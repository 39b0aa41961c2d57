"""What is too much, too late or not wanted any more; and models that come and go while others are asked."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from microplane.config.serving import ServeKnobs
from microplane.inference.generate import End
from microplane.inference.pipeline import load
from microplane.serving import watch
from microplane.serving.app import Server
from microplane.serving.batch import Batch
from microplane.serving.library import Library
from tests.serving.conftest import running
from tests.serving.kit import adapter

PATH = "/v1/chat/completions"


def body(model="base", most=400, **more):
    return {"model": model, "messages": [{"role": "user", "content": "go on"}], "max_tokens": most} | more


def until(condition, patience=20.0):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def slow(monkeypatch):
    """Answers that take a while: nothing ends them but their limit, and a step takes longer."""
    step = Batch.step

    def slowly(self):
        time.sleep(0.02)
        step(self)

    monkeypatch.setattr(Batch, "step", slowly)
    monkeypatch.setattr(End, "reached", lambda self, ids, text: len(ids) == self.limit)


@pytest.fixture
def endless(library, slow):
    """A server with room for two answers and one that waits."""
    server = Server(library, ServeKnobs(max_batch=2, queue=1))
    with running(server) as address:
        yield server, address


def ask(address, **more):
    return httpx.post(address + PATH, json=body(**more), timeout=60)


def test_a_full_queue_refuses_and_goes_on(endless):
    server, address = endless
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, address, model="lora0", most=60, temperature=2.0, seed=n) for n in range(8)]
        answers = [one.result() for one in asked]
    counts = {status: sum(answer.status_code == status for answer in answers) for status in (200, 429)}
    assert counts[200] >= 3
    assert counts[429] >= 1
    assert counts[200] + counts[429] == 8
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == "1"
    assert ask(address, most=4).status_code == 200
    assert ask(address, most=4, n=9).status_code == 400  # more than there will ever be room for
    with httpx.stream("POST", address + PATH, json=body(stream=True), timeout=60):
        assert ask(address, most=4, n=3).status_code == 429  # all or none of a request's answers
    until(lambda: server.scheduler.running == 0)
    assert server.scheduler.running == server.scheduler.waiting == 0


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_is_not_computed_for(endless, stream):
    server, address = endless
    before = server.metrics.cancelled
    if stream:
        with httpx.stream("POST", address + PATH, json=body(stream=True), timeout=60) as answer:
            assert answer.status_code == 200
            until(lambda: server.metrics.steps > 3)
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + PATH, json=body(), timeout=0.4)
    until(lambda: server.scheduler.running == 0)
    until(lambda: server.metrics.cancelled == before + 1)
    assert server.metrics.steps < 390  # of 400


def test_a_request_that_takes_too_long_is_given_up(library, slow):
    server = Server(library, ServeKnobs(timeout=2.0))
    with running(server) as address:
        answer = ask(address)  # of at least eight seconds
        assert answer.status_code == 408
        assert answer.json()["error"]["type"] == "timeout_error"
        assert ask(address, most=2).status_code == 200


def test_a_slow_reader_holds_up_nobody(endless):
    _, address = endless
    with httpx.stream("POST", address + PATH, json=body(most=60, stream=True), timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert ask(address, most=3).status_code == 200  # while nothing is read
        assert "[DONE]" in list(lines)[-2]


def test_a_failing_step_fails_those_in_it_and_nobody_else(library, monkeypatch):
    server, step = Server(library, ServeKnobs()), Batch.step
    failing = threading.Event()

    def broken(self):
        if failing.is_set():
            failing.clear()
            raise RuntimeError("a defect with secret details")
        step(self)

    monkeypatch.setattr(Batch, "step", broken)
    with running(server) as address:
        expected = ask(address, most=5).json()["choices"]
        failing.set()
        answer = ask(address, most=5)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert ask(address, most=5).json()["choices"] == expected


def test_a_token_is_asked_for(library):
    with running(Server(library, token="s3cret")) as address:
        assert httpx.get(f"{address}/health").status_code == 200
        assert httpx.get(f"{address}/").status_code == 200
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "s3cret"}):
            answer = httpx.get(f"{address}/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_another_sites_name_for_this_machine_is_refused(library):
    with running(Server(library, hosts=["127.0.0.1", "localhost"])) as address:
        assert httpx.get(f"{address}/v1/models").status_code == 200
        refused = httpx.get(f"{address}/v1/models", headers={"Host": "evil.example"})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_host"


def test_adapters_come_and_go_while_others_are_asked(tmp_path, bases, adapters, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.05)
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: (time.sleep(0.02), step(self)))
    folder = tmp_path / "adapters"
    shutil.copytree(adapters / "lora0", folder / "first")
    library = Library("float32")
    library.publish(library.open(str(bases["base"])))
    server = Server(library, ServeKnobs(), folder)
    assert server.adapters.open_all() == []
    known = lambda: {model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"]}  # noqa: E731
    with running(server) as address, ThreadPoolExecutor(1) as pool:
        assert known() == {"base", "first"}
        going = pool.submit(ask, address, model="first", most=40)
        shutil.copytree(adapters / "lora1", folder / "second")
        until(lambda: "second" in known())
        expected = load(adapters / "lora1", "float32").generate("go on", max_new_tokens=12)
        assert ask(address, model="second", most=12).json()["choices"][0]["message"]["content"] == expected
        shutil.rmtree(folder / "first")
        until(lambda: "first" not in known())
        assert ask(address, model="first", most=2).status_code == 404
        expected = load(adapters / "lora0", "float32").generate("go on", max_new_tokens=40)
        assert going.result().json()["choices"][0]["message"]["content"] == expected  # it was asked before
        shutil.rmtree(folder / "second")  # another adapter under the same name
        adapter(bases["base"], folder / "second", seed=77, rank=3)
        expected = load(folder / "second", "float32").generate("go on", max_new_tokens=12)

        def other():
            answer = ask(address, model="second", most=12)
            return answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == expected

        until(other)
        model = server.library.served["base"].model
        layers = [layer for layer in model.modules() if hasattr(layer, "pairs")]
        until(lambda: {len(layer.pairs) for layer in layers} == {1})  # the memory of those that went is free


def test_adapters_are_loaded_and_unloaded_by_requests(tmp_path, bases, adapters):
    folder = tmp_path / "adapters"
    (folder / "below").mkdir(parents=True)
    shutil.copytree(adapters / "lora1", folder / "below" / "x")
    outside = tmp_path / "outside"
    shutil.copytree(adapters / "lora1", outside)
    library = Library("float32")
    library.publish(library.open(str(bases["base"])))
    server = Server(library, ServeKnobs(), folder)
    with running(server) as address:
        loaded = httpx.post(f"{address}/v1/adapters", json={"path": "below/x", "name": "mine"})
        assert loaded.json()["id"] == "mine", loaded.text
        assert ask(address, model="mine", most=3).status_code == 200
        again = httpx.post(f"{address}/v1/adapters", json={"path": "below/x", "name": "mine"})
        assert "served already" in again.json()["error"]["message"]
        for path in ("../outside", str(outside), ".", "below/../../outside", "/etc"):
            assert httpx.post(f"{address}/v1/adapters", json={"path": path}).status_code == 403
        for path in ("nothing", "a\0b", "\ud800", "a" * 5000, "below/x/adapter_model.safetensors"):
            sent, kind = json.dumps({"path": path}).encode(), {"Content-Type": "application/json"}
            assert httpx.post(f"{address}/v1/adapters", content=sent, headers=kind).status_code == 404
        assert httpx.post(f"{address}/v1/adapters", json={"path": "below"}).status_code == 400
        assert httpx.delete(f"{address}/v1/adapters/mine").json()["deleted"]
        assert ask(address, model="mine", most=3).status_code == 404
        assert "stays" in httpx.delete(f"{address}/v1/adapters/base").json()["error"]["message"]
