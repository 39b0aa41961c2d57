"""What all requests go through: who may ask, how much they may send, errors in OpenAI's form, and counting."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from microplane.errors import MicroplaneError
from microplane.serving.metrics import Metrics
from microplane.serving.protocol import ApiError
from microplane.serving.scheduler import BusyError, EndingError, TooLateError

BODY_SECONDS = 30.0  # in which a body has to arrive
OPEN = ("/", "/health")  # what is answered without a token: nothing of the models
log = logging.getLogger(__name__)
T = TypeVar("T")


class Json(JSONResponse):
    """JSON, also of texts with half a surrogate pair in them."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def error_of(error: Exception) -> ApiError:
    """What a client is told of an exception; of a defect nothing but that there is one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(503 if isinstance(error, EndingError) else 429, str(error), code="server_busy")
    if isinstance(error, TooLateError):
        return ApiError(408, str(error), code="timeout")
    if isinstance(error, MicroplaneError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, error.detail)
    log.error("a request failed", exc_info=error)
    return ApiError(500, "the server has failed at this request; its log says why", code="internal_error")


async def object_in(request: Request, most: int) -> Mapping[str, Any]:
    """The JSON object in a request's body.

    Raises:
        ApiError: if there is none, or it is longer than `most` bytes, or it does not arrive.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # which no page of another site can send unasked
        raise ApiError(415, f"content-type = {kind!r:.80}: send the request as application/json")
    too_large = ApiError(413, f"the request is larger than the {most:,} bytes that are taken", code="request_too_large")
    if request.headers.get("content-length", "").isdecimal() and int(request.headers["content-length"]) > most:
        raise too_large
    body = bytearray()

    async def receive() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > most:
                raise too_large

    try:
        await asyncio.wait_for(receive(), BODY_SECONDS)
    except TimeoutError:
        raise ApiError(408, f"the request did not arrive within {BODY_SECONDS:g} seconds") from None
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is no JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the request must be a JSON object, and is a {type(value).__name__}", code="invalid_json")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client goes away first.

    Raises:
        ClientDisconnect: if it has gone.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientDisconnect
    finally:
        leaving.cancel()
        doing.cancel()


class Gate:
    """Around the whole application: who may ask, counting, and an answer to every exception.

    Args:
        token: that requests have to bring; None: none.
        hosts: under which the server may be asked; empty: under any.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None, hosts: Sequence[str] = ()):
        self.app, self.metrics, self.token, self.hosts = app, metrics, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._admit(scope)
            await self.app(scope, receive, counted)
        except ClientDisconnect:
            status = 499
        except Exception as error:
            told = error_of(error)
            if status:  # an answer has begun, and cannot become another
                raise
            headers = {"WWW-Authenticate": "Bearer"} if told.status == 401 else {}
            headers |= {"Retry-After": "1"} if told.status in (429, 503) else {}
            await Json(told.body, told.status, headers)(scope, receive, counted)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests[path, status] += 1

    def _admit(self, scope: Scope) -> None:
        host = host_of(_header(scope, b"host"))
        if self.hosts and host not in self.hosts:  # the name of another site that leads here
            known = ", ".join(self.hosts)
            raise ApiError(400, f"Host = {host!r:.80}: this server answers under {known} alone", code="invalid_host")
        if self.token is None or scope["path"] in OPEN:
            return
        given = _header(scope, b"authorization")
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise ApiError(401, "a bearer token is needed, and this is not it", code="invalid_api_key")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for given, value in scope["headers"] if given == name), b"")


def host_of(header: bytes) -> str:
    """The name in a Host header, without its port; an address of IPv6 keeps its brackets."""
    text = header.decode("latin-1").lower()
    name, _, port = text.rpartition(":")
    return name if name and (port.isdecimal() or not port) else text
