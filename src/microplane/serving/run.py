"""A server from its first second to its last: the socket, what is opened, and an end in good order."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from microplane.checkpoints.attach_saved import adapter_folder
from microplane.config.serving import ServeKnobs
from microplane.errors import ConfigError
from microplane.serving.app import Server
from microplane.serving.library import Library

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    names: Sequence[str],
    adapters: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    knobs: ServeKnobs | None = None,
    library: Library | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve models until the process is told to end (SIGTERM, Ctrl-C): then no request is taken any more, and those
    that are there are finished.

    Args:
        names: bases, runs and adapters; of what was trained the base is served too.
        adapters: a folder of adapters, which come and go while the server runs.
        token: that requests have to bring; needed for a host that others can reach.
        knobs: what is taken on.
        say: gets a line for whoever has started it.

    Raises:
        MicroplaneError: for what cannot be opened, a port that is taken, or a host that needs a token.
    """
    if host not in LOOPBACK and not token:
        raise ConfigError(
            f"--host {host} lets other machines ask, so it needs a token: set MICROPLANE_TOKEN, or name a file with "
            "--token-file"
        )
    if adapters is not None and not adapters.is_dir():
        raise ConfigError(f"--adapters {adapters}: there is no such folder")
    knobs = knobs or ServeKnobs()
    listening = _listen(host, port)
    with listening:
        library = library or Library()
        hosts = [*LOOPBACK, "[::1]"] if host in LOOPBACK else []
        server = Server(library, knobs, adapters, token, hosts)
        for problem in server.adapters.open_all() if server.adapters else ():
            say(problem)
        for name in _runs_first(names):
            library.publish(library.open(name))
        if not library.served:
            raise ConfigError("there is nothing to serve: name a base or a run, or put an adapter into the folder")
        for served in library:
            say(f"{served.name}: {', '.join(_abilities(served.writes, served.labels))}; {served.way}")
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listening.getsockname()[1]}  the playground; /v1 is OpenAI's API. Ctrl-C ends it")
        logging.basicConfig(format="%(levelname)s: %(message)s")
        logging.getLogger("microplane.serving").setLevel(logging.INFO)
        config = uvicorn.Config(
            server.app(),
            http="h11",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(knobs.grace)),
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)  # at once, so that a second server on the port is refused before it reads its models
    except (OSError, OverflowError) as error:
        listening.close()
        said = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host}, port {port}: {said}. Choose another with --port") from None
    return listening


def _runs_first(names: Sequence[str]) -> list[str]:
    """What was trained before bases, which are then opened in the number format that it was trained in."""
    return sorted(dict.fromkeys(names), key=lambda name: adapter_folder(Path(name).expanduser()) is None)


def _abilities(writes: bool, labels: bool) -> list[str]:
    return [*(["writes"] if writes else []), *(["classifies"] if labels else []), "embeds"]
