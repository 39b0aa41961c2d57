"""The application: which path does what. `Server` holds what the handlers share."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from microplane.config.serving import ServeKnobs
from microplane.errors import nearest
from microplane.inference.predict import Reading, embeddings_of, labels_of, read_to_embed, read_to_label
from microplane.objectives.head import Prediction
from microplane.serving.answers import Asked, Form, prepare
from microplane.serving.http import Gate, Json, error_of, object_in, while_connected
from microplane.serving.library import Library, Served
from microplane.serving.metrics import Metrics
from microplane.serving.playground import held_out, page
from microplane.serving.protocol import (
    AdapterRequest,
    ApiError,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    read,
)
from microplane.serving.scheduler import Scheduler
from microplane.serving.watch import AdapterFolder

CREATED = "microplane"  # who owns a model, in OpenAI's lists


@dataclass
class Server:
    """What the handlers share.

    Args:
        folder: whose adapters are served as they come and go.
        token: that every request must bring; None: none.
        hosts: names under which it may be asked for (another site's name that leads here is refused); empty: any.
    """

    library: Library
    knobs: ServeKnobs = field(default_factory=ServeKnobs)
    folder: Path | None = None
    token: str | None = None
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.scheduler = Scheduler(self.knobs, self.metrics)
        self.adapters = AdapterFolder(self.folder, self.library, self.scheduler) if self.folder else None

    def app(self) -> Starlette:
        """The paths, and what is around them all."""
        routes = [
            Route("/", self.playground),
            Route("/playground/rows", self.rows),
            Route("/health", self.health),
            Route("/metrics", self.counts),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", partial(self.write, ChatRequest), methods=["POST"]),
            Route("/v1/completions", partial(self.write, CompletionRequest), methods=["POST"]),
            Route("/v1/embeddings", self.embed, methods=["POST"]),
            Route("/v1/classify", self.label, methods=["POST"]),
            Route("/v1/adapters", self.load, methods=["POST"]),
            Route("/v1/adapters/{name:path}", self.unload, methods=["DELETE"]),
        ]
        gate = Middleware(Gate, metrics=self.metrics, token=self.token, hosts=self.hosts)
        return Starlette(routes=routes, middleware=[gate], lifespan=self._life, exception_handlers=HANDLERS)

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        self.scheduler.start()
        watching = asyncio.create_task(self.adapters.watch()) if self.adapters else None
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            await asyncio.to_thread(self.scheduler.stop)

    def named(self, name: str) -> Served:
        """Raises: ApiError, if there is no model of that name."""
        found = self.library.served.get(name)
        if found is None:
            known = ", ".join(self.library.served)
            said = f"there is no model {name!r:.220}; served are {known}.{nearest(name, self.library.served)}"
            raise ApiError(404, said, "model", "model_not_found")
        return found

    def still(self, served: Served) -> Served:
        """The same, if it was not unloaded since: what is queued from here on is computed before it is freed."""
        if self.library.served.get(served.name) is not served:
            raise ApiError(404, f"the model {served.name!r} was unloaded meanwhile", "model", "model_not_found")
        return served

    # Answers

    async def write(self, kind: type[ChatRequest | CompletionRequest], request: Request) -> Response:
        asked_for = read(kind, await object_in(request, self.knobs.max_body))
        served = self.named(asked_for.model)
        if not served.writes:
            way = "/v1/classify" if served.labels else "/v1/embeddings"
            raise ApiError(400, f"{served.name} writes no text: ask {way}", "model", "model_not_supported")
        if asked_for.answers > (most := self.knobs.at_once):
            said = (
                f"{asked_for.answers:,} answers are asked for, and this server takes {most:,} at once (--max-batch and "
            )
            param = asked_for.ASKED if asked_for.count == 1 else "n"
            raise ApiError(400, f"{said}--queue): ask for fewer", param, "invalid_value")
        prompts = await asyncio.to_thread(prepare, asked_for, served)
        asked = Asked(asked_for, served, prompts, self.knobs.max_tokens, self.knobs.batch_tokens)
        self.scheduler.write(self.still(served).engine, asked.answers)
        form = Form(asked)
        if asked_for.stream:
            return Stream(asked, form)
        await while_connected(request, asked.whole())
        return Json(form.whole())

    async def embed(self, request: Request) -> Response:
        asked = read(EmbeddingRequest, await object_in(request, self.knobs.max_body))
        served = self.named(asked.model)
        tokenizer = served.pipeline.tokenizer
        readings = await self._read(partial(read_to_embed, served.model, tokenizer, asked.texts))

        def compute(readings: Sequence[Reading]) -> list[list[float]]:
            found: list[list[float]] = embeddings_of(served.model, readings).tolist()
            return found

        vectors = await while_connected(request, self._compute(served, "embed", readings, compute))
        form = _packed if asked.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": n, "embedding": form(vector)} for n, vector in enumerate(vectors)]
        return Json({"object": "list", "data": data, "model": served.name, "usage": _usage(readings)})

    async def label(self, request: Request) -> Response:
        asked = read(ClassifyRequest, await object_in(request, self.knobs.max_body))
        served = self.named(asked.model)
        if not served.labels:
            way = "/v1/chat/completions" if served.writes else "/v1/embeddings"
            raise ApiError(
                400, f"{served.name} has no task head, so no labels: ask {way}", "model", "model_not_supported"
            )
        if not served.pipeline.pairs and any(not isinstance(text, str) for text in asked.texts):
            raise ApiError(400, f"{served.name} was trained on single texts, not on pairs", "input", "invalid_value")
        pipeline = served.pipeline
        readings = await self._read(
            partial(read_to_label, served.model, pipeline.tokenizer, asked.texts, pipeline.window)
        )
        doing = self._compute(served, "label", readings, partial(labels_of, served.model))
        found = await while_connected(request, doing)
        data = [{"index": number, **_told(one)} for number, one in enumerate(found)]
        return Json({"object": "list", "data": data, "model": served.name, "usage": _usage(readings)})

    async def _read(self, how: Callable[[], list[Reading]]) -> list[Reading]:
        """Texts as rows of tokens, made beside the loop: the only time that they are cut into tokens.

        Raises:
            DataError: for a text that is empty or not UTF-8.
            ApiError: for one that there is no room for, where the model itself knows no bound.
        """
        readings, room = await asyncio.to_thread(how), self.knobs.batch_tokens
        if (longest := max(one.tokens for one in readings)) > room:
            said = f"a text has {longest:,} tokens, and this server has room for {room:,} (--batch-tokens): shorten it"
            raise ApiError(400, said, "input", "context_length_exceeded")
        return readings

    def _compute(
        self, served: Served, what: str, readings: Sequence[Reading], how: Callable[[Sequence[Any]], Sequence[Any]]
    ) -> asyncio.Future[Sequence[Any]]:
        """Queue texts that one pass is enough for."""

        def through(own: Sequence[Any]) -> Sequence[Any]:
            router = served.engine.router
            with nullcontext() if router is None else router.only(served.adapter):
                return how(own)

        engine, sizes = self.still(served).engine, [one.tokens for one in readings]
        return asyncio.wrap_future(self.scheduler.compute(engine, served.adapter, what, readings, sizes, through))

    # Models

    async def models(self, request: Request) -> Response:
        return Json({"object": "list", "data": [_described(served) for served in self.library]})

    async def model(self, request: Request) -> Response:
        return Json(_described(self.named(request.path_params["name"])))

    async def load(self, request: Request) -> Response:
        asked = read(AdapterRequest, await object_in(request, self.knobs.max_body))
        if self.adapters is None:
            raise ApiError(403, "adapters are loaded out of one folder only: start the server with --adapters FOLDER")
        served = await self.adapters.load(asked.path, asked.name)
        return Json(_described(served))

    async def unload(self, request: Request) -> Response:
        if self.adapters is None:
            raise ApiError(403, "adapters are unloaded only where the server was started with --adapters FOLDER")
        name = request.path_params["name"]
        self.named(name)
        await self.adapters.unload(name)
        return Json({"id": name, "object": "model", "deleted": True})

    # What the server is

    async def health(self, request: Request) -> Response:
        alive = self.scheduler.alive
        told = {"running": self.scheduler.running, "waiting": self.scheduler.waiting}
        return Json({"status": "ok" if alive else "the computing thread has ended", **told}, 200 if alive else 503)

    async def counts(self, request: Request) -> Response:
        text = self.metrics.text(self.scheduler.running, self.scheduler.waiting, len(self.library.served))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def playground(self, request: Request) -> Response:
        text, policy = page()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

    async def rows(self, request: Request) -> Response:
        served = self.named(request.query_params.get("model", ""))
        return Json({"rows": await asyncio.to_thread(held_out, served.folder)})


class Stream(StreamingResponse):
    """An answer in server-sent events, which is not computed on where nobody reads it."""

    def __init__(self, asked: Asked, form: Form):
        super().__init__(form.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.asked.cancel()


async def _http_error(request: Request, error: Exception) -> Response:
    told = error_of(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return Json(told.body, told.status, headers)


HANDLERS: Any = {HTTPException: _http_error}


def _usage(readings: Sequence[Reading]) -> dict[str, int]:
    tokens = sum(one.tokens for one in readings)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _packed(vector: list[float]) -> str:
    """float32, little-endian, as base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _told(one: Prediction) -> dict[str, Any]:
    words = [{"word": word, "label": of.label, "probabilities": of.probabilities} for word, of in one.words]
    told = {"label": one.label or None, "labels": list(one.labels), "probabilities": one.probabilities}
    return told | {"values": list(one.values), "words": words}


def _described(served: Served) -> dict[str, Any]:
    can = [name for name, has in (("write", served.writes), ("classify", served.labels)) if has] + ["embed"]
    told = {"id": served.name, "object": "model", "created": served.created, "owned_by": CREATED}
    told |= {"parent": served.parent, "can": can, "computed": served.way}
    return told | ({"pairs": served.pipeline.pairs} if served.labels else {})
