"""A server with a decoder and its adapters, an encoder-decoder, and an encoder with and without a head."""

import asyncio
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from microplane.config.serving import ServeKnobs
from microplane.serving.app import Server
from microplane.serving.library import Library
from tests.serving.kit import adapter, decoder_folder, encoder_folder, pair_folder


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {
        "base": decoder_folder(folder / "base"),
        "t5": pair_folder(folder / "t5"),
        "bert": encoder_folder(folder / "bert"),
    }


@pytest.fixture(scope="session")
def adapters(tmp_path_factory, bases):
    """A folder of adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    for number in range(3):
        adapter(bases["base"], folder / f"lora{number}", seed=number + 1, rank=2 + 2 * number)
    adapter(bases["base"], folder / "dora", "dora", seed=9, rank=4)
    adapter(bases["t5"], folder / "t5-lora", seed=4, rank=4)
    adapter(bases["bert"], folder / "moods", seed=5, rank=4, head=["good", "bad", "neither"])
    return folder


@contextmanager
def running(server: Server):
    """The server on a free port of this process; gives its address."""
    config = uvicorn.Config(server.app(), port=0, http="h11", ws="none", lifespan="on", log_level="warning")
    web = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(web.serve()))
    thread.start()
    while not web.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    port = web.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        web.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def library(bases, adapters):
    library = Library("float32")
    for base in bases.values():
        library.publish(library.open(str(base)))
    for folder in sorted(adapters.iterdir()):
        library.publish(library.open_adapter(folder))
    return library


@pytest.fixture(scope="session")
def server(library):
    return Server(library, ServeKnobs(max_batch=16, max_tokens=24, max_body=100_000))


@pytest.fixture(scope="session")
def address(server):
    with running(server) as address:
        yield address


@pytest.fixture(scope="session")
def client(address):
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
